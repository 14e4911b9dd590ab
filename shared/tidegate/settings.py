"""What can be configured: every key with its type and default.

Keys may be added, never change meaning (see docs/configuration.md). Counterpart: `settings_file.py` reads the file.
"""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from tidegate.errors import ConfigFault
from tidegate.events import Capture, Mode
from tidegate.limits import Limits


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
    service_claim: str = ""  # CLAIM or CLAIM=VALUE: what marks a service account's token; default: the known marks
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


class Privacy(Part, frozen=True, kw_only=True):
    """Personal fields of events, sealed per subject, so that they can be erased from an append-only log."""

    sealing: bool | None = None  # default: on with `log: sqlite`, and where there is a key_file
    key_file: str = ""  # masters, base64 of 32 bytes a line; the first wraps; default in local mode: under {data}/keys


class Rule(Part, frozen=True, kw_only=True):
    """Overrides for a server, one tool of it (the upstream's own name), a tenant, or whatever has a label."""

    server: str = ""
    tool: str = ""
    tenant: str = ""
    label: str = ""  # of the tool or its server: this rule can make others stricter, never laxer
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
    key_file: str = ""  # default: cert_file holds the key as well
    key_password: str = ""
    key_password_file: str = ""

    def __repr__(self) -> str:  # it may come to stand in a log
        return f"Tls(ca_file={self.ca_file!r}, cert_file={self.cert_file!r}, key_file={self.key_file!r})"


class Sasl(Part, frozen=True, kw_only=True):
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str
    password: str = ""
    password_file: str = ""  # instead of `password`: its first line

    def __repr__(self) -> str:  # it may come to stand in a log
        return f"Sasl(mechanism={self.mechanism!r}, username={self.username!r})"


class Kafka(Part, frozen=True, kw_only=True):
    prefix: str = "tidegate."
    partitions: int = 12
    replication: int = 3
    min_insync: int = 2
    retention_days: int = 30
    tls: Tls | None = None
    sasl: Sasl | None = None


class Retention(Part, frozen=True, kw_only=True):
    """How long the local log keeps calls, sessions, detections, dead letters and `ocsf`; with Kafka see `kafka`."""

    days: float = 30.0  # 0: for ever
    bytes_max: int = 0  # of the file; 0: no bound

    def __post_init__(self) -> None:
        if self.days < 0 or self.bytes_max < 0:
            raise ValueError("days and bytes_max are 0 or more")


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
    trusted_proxies: tuple[str, ...] = ()  # networks or addresses whose word on a caller's address counts
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"  # in which they say it
    taint_labels: tuple[str, ...] = ("sensitive", "read-private", "returns-untrusted")  # that a session takes on
    naming: Naming = Naming()
    sets: dict[str, Toolset] = {}
    identity: Identity = Identity()
    policy: str = ""
    log: str = "sqlite"
    kafka: Kafka = Kafka()
    retention: Retention = Retention()
    sessions: str = "memory"
    analytics: str = "chdb"
    analytics_password: str = ""
    audit: Audit = Audit()
    privacy: Privacy = Privacy()
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
    def seals(self) -> bool:
        """Whether the personal fields of new events are sealed."""
        given = self.privacy.sealing
        return self.is_local or bool(self.privacy.key_file) if given is None else given

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
