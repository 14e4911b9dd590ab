"""The configuration file: read once, checked whole, refused with the key's path, what was expected and a suggestion.

Keys may be added, never change meaning (see docs/configuration.md). `${VAR}` and `${VAR:-default}` are expanded in
strings.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml

from tidegate.errors import ConfigFault
from tidegate.events import Capture, Mode
from tidegate.limits import Limits

SERVER_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")
SET_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
SHOWN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
RESERVED_SERVER_NAMES = frozenset({"sets"})


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file."""


class Server(Part, frozen=True, kw_only=True):
    """An upstream MCP server: a command spoken to over stdio, or a URL spoken to over streamable HTTP."""

    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    url: str = ""
    headers: dict[str, str] = {}
    labels: tuple[str, ...] = ()  # "sensitive", "egress", ...
    timeout_s: float = 0.0  # 0: limits.call_timeout_s
    era: Literal["auto", "modern", "legacy"] = "auto"  # auto: the server is asked
    urls: tuple[str, ...] = ()  # replicas of one server, instead of `url`: sessions stay where they began
    transport: Literal["auto", "http", "sse"] = "auto"  # of a URL; sse: the older HTTP+SSE; auto: found out
    process: Literal["shared", "per-principal"] = "shared"  # of a command: one for all, or one per subject and agent
    idle_s: float | None = None  # a process unused for so long ends; default: 900 per principal, 0 (never) shared

    def __post_init__(self) -> None:
        if self.urls and not self.url:
            msgspec.structs.force_setattr(self, "url", self.urls[0])


class Issuer(Part, frozen=True, kw_only=True):
    """A token issuer whose JWTs are accepted."""

    issuer: str
    jwks_uri: str = ""
    jwks_file: str = ""
    tenant: str = ""  # default: the config's tenant
    algorithms: tuple[str, ...] = ("RS256", "ES256", "PS256", "EdDSA")
    agent_claims: tuple[str, ...] = ("client_id", "cid", "azp", "appid")  # first one present names the agent
    groups_claim: str = "groups"
    login_claims: tuple[str, ...] = ("email", "preferred_username", "upn", "login")
    user_prefix: str = (
        ""  # in front of `sub` in Cedar's User ids; needed when two issuers of a tenant could share a sub
    )


class Identity(Part, frozen=True, kw_only=True):
    audience: tuple[str, ...] | str = ()  # default: {public_url}/mcp and below
    issuers: tuple[Issuer, ...] = ()
    local_issuer: bool | None = (
        None  # default: true with `log: sqlite`, else false; must be switched on by name with Kafka
    )
    leeway_s: float = 30.0


class Roots(Part, frozen=True, kw_only=True):
    """Sealing of what the log took, and the check of ClickHouse that follows."""

    every_s: float = 20.0  # 0: nothing is sealed here
    key_file: str = ""  # Ed25519 private key, PEM; of its own, never the one that signs releases
    file: str = ""  # where roots are published beside the log; default: {data}/roots.jsonl
    sealer: str = ""  # the name of this series of roots; default: the region


class Audit(Part, frozen=True, kw_only=True):
    mode: Mode = "spool"
    capture: Capture = "masked"
    roots: Roots = Roots()
    ocsf_topic: bool = False  # calls as OCSF objects on the topic `ocsf`, for SIEMs


class Rule(Part, frozen=True, kw_only=True):
    """Overrides for a server, or one tool of it (the upstream's own name)."""

    server: str
    tool: str = ""
    durability: Mode | None = None
    capture: Capture | None = None
    labels: tuple[str, ...] = ()


class Naming(Part, frozen=True, kw_only=True):
    """How tools and prompts are named at doors of several servers."""

    prefix: Literal["always", "collision", "none"] = "always"
    separator: str = "__"
    length_max: int = 64  # clients and model APIs cut or refuse longer names
    names: dict[str, str] = {}  # "server/tool" → the name shown


class SetTool(Part, frozen=True, kw_only=True):
    """One tool of a set. `arguments` are fixed: the client neither sees nor gives them."""

    server: str
    tool: str
    name: str = ""  # default: the tool's own
    arguments: dict[str, Any] = {}

    @property
    def shown(self) -> str:
        return self.name or self.tool


class Toolset(Part, frozen=True, kw_only=True):
    """A named selection from several servers, at /mcp/sets/{name}."""

    description: str = ""
    instructions: str = ""  # default: those of its servers
    tools: tuple[SetTool, ...] = ()
    prompts: tuple[str, ...] = ()  # servers, all of whose prompts are in the set
    resources: tuple[str, ...] = ()  # servers, all of whose resources are in the set


class Tls(Part, frozen=True, kw_only=True):
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Sasl(Part, frozen=True, kw_only=True):
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str
    password: str


class Kafka(Part, frozen=True, kw_only=True):
    prefix: str = "tidegate."
    partitions: int = 12
    replication: int = 3
    min_insync: int = 2
    retention_days: int = 30
    tls: Tls | None = None
    sasl: Sasl | None = None


class ServiceListen(Part, frozen=True, kw_only=True):
    listen: str


class Services(Part, frozen=True, kw_only=True):
    policy: ServiceListen = ServiceListen(listen="127.0.0.1:8081")
    audit_consumer: ServiceListen = msgspec.field(default=ServiceListen(listen="127.0.0.1:8082"), name="audit-consumer")
    detector: ServiceListen = ServiceListen(listen="127.0.0.1:8083")


class Trust(Part, frozen=True, kw_only=True):
    bundle_keys: tuple[str, ...] = ()  # Ed25519 public keys, base64 of the 32 bytes
    audit_keys: tuple[str, ...] = ()  # likewise: whose roots `tidegate verify` believes


class Signing(Part, frozen=True, kw_only=True):
    key_file: str = ""  # Ed25519 private key, PEM; the policy service alone reads it


class Edge(Part, frozen=True, kw_only=True):
    id: str = ""  # default: the host's name and the listening port
    address: str = ""  # where other edges reach this one; default: http://{listen}
    labels: dict[str, str] = {}
    ring: str = "main"


class Management(Part, frozen=True, kw_only=True):
    admin_groups: tuple[str, ...] = ("tidegate-admins",)


class Burst(Part, frozen=True, kw_only=True):
    """A burst: calls in one window, far over the principal's own baseline."""

    window_s: float = 10.0
    calls_min: int = 30
    factor: float = 5.0  # times the principal's own mean per window
    severity: Literal["low", "medium", "high", "critical"] = "medium"


class Exfiltration(Part, frozen=True, kw_only=True):
    """Text read from a server labelled sensitive appears in arguments to a server labelled egress."""

    memory_s: float = 3_600.0
    shared_min: int = 2  # fingerprints in common
    severity: Literal["low", "medium", "high", "critical"] = "high"


class Detector(Part, frozen=True, kw_only=True):
    burst: Burst = Burst()
    exfiltration: Exfiltration = Exfiltration()
    quarantine_from: Literal["low", "medium", "high", "critical", "never"] = "high"
    quarantine_scope: Literal["session", "subject"] = "session"
    quarantine_s: float = 3_600.0


class Settings(Part, frozen=True, kw_only=True):
    """The whole file. `root` is the directory that relative paths start from."""

    listen: str = "127.0.0.1:8080"
    public_url: str = ""  # default: http://{listen}
    allowed_hosts: tuple[
        str, ...
    ] = ()  # default: the hosts of `listen` and `public_url`, and localhost when on loopback
    allowed_origins: tuple[str, ...] = ()  # default: the origin of `public_url`
    data: str = "data"
    tenant: str = "default"
    region: str = "local"
    servers: dict[str, Server] = {}
    rules: tuple[Rule, ...] = ()
    naming: Naming = Naming()
    sets: dict[str, Toolset] = {}
    identity: Identity = Identity()
    policy: str = ""
    log: str = "sqlite"
    kafka: Kafka = Kafka()
    sessions: str = "memory"
    analytics: str = "chdb"
    analytics_password: str = ""
    audit: Audit = Audit()
    limits: Limits = Limits()
    services: Services = Services()
    trust: Trust = Trust()
    signing: Signing = Signing()
    secrets_file: str = ""  # default: {data}/secrets.json, made at the first start of local mode
    edge: Edge = Edge()
    management: Management = Management()
    detector: Detector = Detector()
    root: str = "."

    def path(self, relative: str) -> Path:
        """A path of the file, absolute."""
        return (Path(self.root) / relative).resolve()

    @property
    def data_dir(self) -> Path:
        return self.path(self.data)

    @property
    def url(self) -> str:
        """The public base URL, without a trailing slash."""
        return (self.public_url or f"http://{self.listen}").rstrip("/")

    @property
    def is_local(self) -> bool:
        """One process with embedded adapters."""
        return self.log == "sqlite"

    @property
    def local_issuer(self) -> bool:
        return self.is_local if self.identity.local_issuer is None else self.identity.local_issuer

    @property
    def audiences(self) -> tuple[str, ...]:
        """What a token's `aud` must contain one of: what is configured, else the MCP resource and one per server and
        set.
        """
        given = self.identity.audience
        if isinstance(given, str):
            return (given,)
        return given or tuple("/".join(filter(None, (f"{self.url}/mcp", door))) for door in self.doors)

    @property
    def doors(self) -> tuple[str, ...]:
        """The paths below /mcp that are served: "" for all servers, each server's name, `sets/name` for each set."""
        return ("", *self.servers, *(f"sets/{name}" for name in self.sets))

    @property
    def kafka_bootstrap(self) -> str:
        return self.log.removeprefix("kafka://")


def host_port(listen: str) -> tuple[str, int]:
    """("127.0.0.1", 8080) of "127.0.0.1:8080"; IPv6 in brackets."""
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port beyond 65535, or a bracket that is not closed
        host, port = None, None
    if not host or port is None:
        raise ConfigFault(f"listen: '{listen}' is not HOST:PORT, for example 127.0.0.1:8080")
    return host, port


def load_settings(path: str | Path, environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read and check a configuration file. Raises ConfigFault. `overrides` replace top-level keys (from flags)."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigFault(
            f"{path}: cannot be read ({error.strerror}); give --config the path of a tidegate.yaml"
        ) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigFault(f"{path}: is not valid YAML: {error}") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigFault(f"{path}: expected keys and values at the top, got {type(raw).__name__}")
    raw = _expand(raw, os.environ if environment is None else environment, "$")
    raw.update({key: value for key, value in overrides.items() if value is not None})
    raw["root"] = str(file.parent.resolve())
    return check_settings(_convert(raw, file), file)


def check_settings(settings: Settings, file: Path) -> Settings:
    """What types cannot say. Raises ConfigFault."""
    host_port(settings.listen)
    if settings.edge.address and not re.fullmatch(r"https?://[^/?#@]+", settings.edge.address):
        raise ConfigFault(
            f"{file}: $.edge.address: expected 'http://host:port' as other edges reach it, got '{settings.edge.address}'"
        )
    for name, server in settings.servers.items():
        _check_server(name, server, file)
    if settings.log != "sqlite" and not re.fullmatch(r"kafka://[^/]+", settings.log):
        raise ConfigFault(f"{file}: $.log: expected 'sqlite' or 'kafka://host:port[,host:port]', got '{settings.log}'")
    if settings.sessions != "memory" and not re.match(r"rediss?://", settings.sessions):
        raise ConfigFault(f"{file}: $.sessions: expected 'memory' or 'redis://host:port/db', got '{settings.sessions}'")
    if settings.analytics != "chdb" and not re.match(r"clickhouses?://", settings.analytics):
        raise ConfigFault(f"{file}: $.analytics: expected 'chdb' or 'clickhouse://user@host:port/database'")
    if settings.policy and not settings.path(settings.policy).is_dir():
        raise ConfigFault(
            f"{file}: $.policy: {settings.path(settings.policy)} is not a directory; "
            "give a bundle's, for example a copy of examples/01-first-call/policy"
        )
    prefixes: set[tuple[str, str]] = set()
    for index, issuer in enumerate(settings.identity.issuers):
        where = f"{file}: $.identity.issuers[{index}]"
        if bool(issuer.jwks_uri) == bool(issuer.jwks_file):
            raise ConfigFault(f"{where}: give exactly one of jwks_uri and jwks_file")
        if issuer.jwks_file and not settings.path(issuer.jwks_file).is_file():
            raise ConfigFault(f"{where}.jwks_file: {settings.path(issuer.jwks_file)} does not exist")
        if bad := [name for name in issuer.algorithms if name.startswith("HS") or name == "none"]:
            raise ConfigFault(f"{where}.algorithms: {bad[0]} is not accepted; use RS256, PS256, ES256 or EdDSA")
        pair = (issuer.tenant or settings.tenant, issuer.user_prefix)
        if pair in prefixes:
            raise ConfigFault(
                f"{where}.user_prefix: two issuers of tenant '{pair[0]}' share it; equal subjects would meet"
            )
        prefixes.add(pair)
    for index, rule in enumerate(settings.rules):
        if rule.server not in settings.servers:
            raise ConfigFault(
                f"{file}: $.rules[{index}].server: no server '{rule.server}'{_closest(rule.server, settings.servers)}"
            )
    _check_naming(settings, file)
    for name, toolset in settings.sets.items():
        _check_set(name, toolset, settings, file)
    if (
        not settings.is_local
        and settings.sessions == "memory"
        and len(settings.identity.issuers) == 0
        and not settings.local_issuer
    ):
        raise ConfigFault(
            f"{file}: $.identity.issuers: nobody could sign in; add an issuer, or local_issuer: true for a trial"
        )
    return settings


def _check_server(name: str, server: Server, file: Path) -> None:
    where = f"{file}: $.servers.{name}"
    if not SERVER_NAME.fullmatch(name):
        raise ConfigFault(f"{where}: a server's name is 1 to 12 of a-z, 0-9 and '-', beginning with a letter")
    if name in RESERVED_SERVER_NAMES:
        raise ConfigFault(f"{where}: '{name}' is reserved (/mcp/{name}/…); choose another name")
    if bool(server.command) == bool(server.url):
        raise ConfigFault(f"{where}: give exactly one of command (a stdio server) and url (a streamable HTTP server)")
    for url in (server.url, *server.urls):
        if url and urlsplit(url).scheme not in ("http", "https"):
            raise ConfigFault(f"{where}.url: expected http:// or https://, got '{url}'")
    if server.urls and (server.url != server.urls[0] or len(set(server.urls)) != len(server.urls)):
        raise ConfigFault(f"{where}.urls: give url for one address or urls for several different ones, not both")
    if server.command and server.transport != "auto":
        raise ConfigFault(f"{where}: transport goes with url, not with command")
    if len(server.urls) > 1 and server.transport == "sse":
        raise ConfigFault(f"{where}.transport: sse is spoken with one url; its sessions live in one connection")
    if server.url and (server.env or server.cwd):
        raise ConfigFault(f"{where}: env and cwd go with command, not with url")
    if server.command and server.headers:
        raise ConfigFault(f"{where}: headers go with url, not with command")
    if server.url and (server.process != "shared" or server.idle_s is not None):
        raise ConfigFault(f"{where}: process and idle_s go with command, not with url")
    if server.idle_s is not None and server.idle_s < 0:
        raise ConfigFault(f"{where}.idle_s: expected seconds, or 0 for never, got {server.idle_s:g}")


def _check_naming(settings: Settings, file: Path) -> None:
    naming, where = settings.naming, f"{file}: $.naming"
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,8}", naming.separator) or not re.search(r"[A-Z_.]", naming.separator):
        raise ConfigFault(
            f"{where}.separator: expected 1 to 8 of A-Z, a-z, 0-9, '_', '.' and '-', one a capital, '_' or '.', "
            f"which no server's name holds; got '{naming.separator}'"
        )
    if not 32 <= naming.length_max <= 128:
        raise ConfigFault(f"{where}.length_max: expected 32 to 128, got {naming.length_max}")
    owners: dict[str, str] = {}
    for key, shown in naming.names.items():
        server, slash, tool = key.partition("/")
        if not slash or not tool:
            raise ConfigFault(f"{where}.names: '{key}' is not server/tool, for example wiki/search")
        _check_known(server, settings, f"{where}.names.{key}")
        _check_shown(shown, naming.length_max, f"{where}.names.{key}")
        if shown in owners:
            raise ConfigFault(f"{where}.names.{key}: '{owners[shown]}' is named '{shown}', too; names must differ")
        owners[shown] = key


def _check_set(name: str, toolset: Toolset, settings: Settings, file: Path) -> None:
    where = f"{file}: $.sets.{name}"
    if not SET_NAME.fullmatch(name):
        raise ConfigFault(f"{where}: a set's name is 1 to 32 of a-z, 0-9 and '-', beginning with a letter")
    if not (toolset.tools or toolset.prompts or toolset.resources):
        raise ConfigFault(f"{where}: the set is empty; list tools, or servers under prompts or resources")
    for kind in ("prompts", "resources"):
        for index, server in enumerate(getattr(toolset, kind)):
            _check_known(server, settings, f"{where}.{kind}[{index}]")
    owners: dict[str, str] = {}
    for index, tool in enumerate(toolset.tools):
        place = f"{where}.tools[{index}]"
        _check_known(tool.server, settings, f"{place}.server")
        if not tool.tool:
            raise ConfigFault(f"{place}.tool: give the tool's name as the server '{tool.server}' has it")
        if tool.name:
            _check_shown(tool.name, settings.naming.length_max, f"{place}.name")
        if tool.shown in owners:
            raise ConfigFault(
                f"{place}: '{tool.shown}' is the name of {owners[tool.shown]}, too; give one of them another name"
            )
        owners[tool.shown] = f"{tool.server}/{tool.tool}"


def _check_known(server: str, settings: Settings, where: str) -> None:
    if server not in settings.servers:
        raise ConfigFault(f"{where}: no server '{server}'{_closest(server, settings.servers)}")


def _check_shown(name: str, length_max: int, where: str) -> None:
    if len(name) > length_max or not SHOWN_NAME.fullmatch(name):
        raise ConfigFault(
            f"{where}: a shown name is 1 to {length_max} of A-Z, a-z, 0-9, '_', '.' and '-', got '{name:.80}'"
        )


def _convert(raw: dict[str, Any], file: Path) -> Settings:
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigFault(f"{file}: {_sentence(str(error), raw)}") from error


def _sentence(message: str, raw: dict[str, Any]) -> str:
    """msgspec says "Object contains unknown field `x` - at `$.y`"; say the path first and suggest the nearest key."""
    what, _, where = message.partition(" - at ")
    path = where.strip("`") or "$"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown is None:
        return f"{path}: {what}"
    known = _fields_at(path)
    return f"{path}.{unknown[1]}: unknown key{_closest(unknown[1], known)}; known here: {', '.join(sorted(known))}"


def _fields_at(path: str) -> list[str]:
    node: Any = Settings
    for step in re.findall(r"\.([\w-]+)|\[(?:\d+|\.\.\.)\]", path):
        node = _child(node, step)
    return _names(node)


def _child(node: Any, step: str) -> Any:
    info = msgspec.inspect.type_info(node) if not isinstance(node, msgspec.inspect.Type) else node
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(part for part in info.types if not isinstance(part, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.StructType):
        return next((field.type for field in info.fields if field.encode_name == step), info)
    if isinstance(info, msgspec.inspect.DictType):
        return info.value_type
    if isinstance(info, msgspec.inspect.VarTupleType):
        return info.item_type
    return info


def _names(node: Any) -> list[str]:
    info = msgspec.inspect.type_info(node) if not isinstance(node, msgspec.inspect.Type) else node
    if isinstance(info, msgspec.inspect.UnionType):
        info = next(part for part in info.types if not isinstance(part, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.DictType):
        info = info.item_type if isinstance(info, msgspec.inspect.VarTupleType) else info.value_type
    if isinstance(info, msgspec.inspect.StructType):
        return [field.encode_name for field in info.fields if field.encode_name != "root"]
    return []


def _closest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _expand(node: Any, environment: Mapping[str, str], path: str) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, environment, f"{path}.{key}") for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, environment, f"{path}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name in environment:
            return environment[name]
        if default is None:
            raise ConfigFault(
                f"{path}: the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
        return default

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}", value_of, node)
