"""What types cannot say of a configuration: names, pairs of keys that exclude each other, what must exist.

Each fault names the key's path, what was expected and, where one is near, what was perhaps meant.
"""

import difflib
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tidegate.errors import ConfigFault
from tidegate.settings import Rule, Server, Settings, Toolset, host_port

SERVER_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")
SET_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
SHOWN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
LABEL_CHARS_MAX = 64
TAINT_LABELS_MAX = 16
RESERVED_SERVER_NAMES = frozenset({"sets"})


def check_settings(settings: Settings, file: Path) -> Settings:
    """What types cannot say. Raises ConfigFault."""
    host_port(settings.listen)
    if settings.edge.address and not re.fullmatch(r"https?://[^/?#@]+", settings.edge.address):
        told = settings.edge.address
        raise ConfigFault(f"{file}: $.edge.address: expected 'http://host:port' as other edges reach it, got '{told}'")
    for name, server in settings.servers.items():
        _check_server(name, server, file)
    if settings.log != "sqlite" and not re.fullmatch(r"kafka://[^/]+", settings.log):
        raise ConfigFault(f"{file}: $.log: expected 'sqlite' or 'kafka://host:port[,host:port]', got '{settings.log}'")
    sasl = settings.kafka.sasl
    if sasl is not None and bool(sasl.password) == bool(sasl.password_file):
        raise ConfigFault(f"{file}: $.kafka.sasl: give exactly one of password and password_file")
    if settings.sessions != "memory" and not re.match(r"rediss?://", settings.sessions):
        raise ConfigFault(f"{file}: $.sessions: expected 'memory' or 'redis://host:port/db', got '{settings.sessions}'")
    if settings.analytics != "chdb" and not re.match(r"clickhouses?://", settings.analytics):
        raise ConfigFault(f"{file}: $.analytics: expected 'chdb' or 'clickhouse://user@host:port/database'")
    if settings.policy and not settings.path(settings.policy).is_dir():
        raise ConfigFault(
            f"{file}: $.policy: {settings.path(settings.policy)} is not a directory; "
            "give a bundle's, for example a copy of examples/01-first-call/policy"
        )
    _check_tenant(settings.tenant, f"{file}: $.tenant")
    prefixes: set[tuple[str, str]] = set()
    for index, issuer in enumerate(settings.identity.issuers):
        where = f"{file}: $.identity.issuers[{index}]"
        if bool(issuer.jwks_uri) == bool(issuer.jwks_file):
            raise ConfigFault(f"{where}: give exactly one of jwks_uri and jwks_file")
        if issuer.jwks_file and not settings.path(issuer.jwks_file).is_file():
            raise ConfigFault(f"{where}.jwks_file: {settings.path(issuer.jwks_file)} does not exist")
        if bad := [name for name in issuer.algorithms if name.startswith("HS") or name == "none"]:
            raise ConfigFault(f"{where}.algorithms: {bad[0]} is not accepted; use RS256, PS256, ES256 or EdDSA")
        _check_tenant(issuer.tenant or settings.tenant, f"{where}.tenant")
        pair = (issuer.tenant or settings.tenant, issuer.user_prefix)
        if pair in prefixes:
            raise ConfigFault(
                f"{where}.user_prefix: two issuers of tenant '{pair[0]}' share it; equal subjects would meet"
            )
        prefixes.add(pair)
    _check_facts(settings, file)
    _check_durability(settings, file)
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


def _check_tenant(tenant: str, where: str) -> None:
    """It is the first part of every key, and ends there at the first bar."""
    if not _TENANT.fullmatch(tenant):
        raise ConfigFault(f"{where}: '{tenant[:80]}' is not 1 to 64 of letters, digits, '.', '_' and '-'")


def _check_facts(settings: Settings, file: Path) -> None:
    """Who is believed about addresses, and what a session takes on."""
    for index, given in enumerate(settings.trusted_proxies):
        where = f"{file}: $.trusted_proxies[{index}]"
        try:
            network = ip_network(given)
        except ValueError as error:
            raise ConfigFault(
                f"{where}: expected an address or a network, for example 10.1.2.3 or 10.1.2.0/24; {error}"
            ) from None
        if network.prefixlen == 0:
            raise ConfigFault(f"{where}: '{given}' is everybody, who could then claim any address; name your proxies")
    for index, label in enumerate(settings.taint_labels):
        if not 0 < len(label) <= LABEL_CHARS_MAX or "/" in label:
            raise ConfigFault(f"{file}: $.taint_labels[{index}]: expected a label without '/', got '{label:.80}'")
    if len(settings.taint_labels) > TAINT_LABELS_MAX:
        raise ConfigFault(f"{file}: $.taint_labels: at most {TAINT_LABELS_MAX} labels")


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


def _check_durability(settings: Settings, file: Path) -> None:
    if settings.audit.mode == "async":
        raise ConfigFault(
            f"{file}: $.audit.mode: async is no default, for its records can be lost; enable it by a rule for one tool "
            "that is labelled read-only, and choose spool, strict or strict-or-spool here"
        )
    for index, rule in enumerate(settings.rules):
        _check_rule(rule, settings, f"{file}: $.rules[{index}]")


def _check_rule(rule: Rule, settings: Settings, where: str) -> None:
    if not (rule.server or rule.tenant or rule.label):
        raise ConfigFault(f"{where}: give server, tenant or label: what the rule is for")
    if rule.server:
        _check_known(rule.server, settings, f"{where}.server")
    if rule.tool and not rule.server:
        raise ConfigFault(f"{where}.tool: give the server whose tool '{rule.tool:.80}' is")
    tenants = {settings.tenant, *(issuer.tenant for issuer in settings.identity.issuers if issuer.tenant)}
    if rule.tenant and rule.tenant not in tenants:
        near = f"{closest(rule.tenant, tenants)}; there are {', '.join(sorted(tenants))}"
        raise ConfigFault(
            f"{where}.tenant: no tenant '{rule.tenant:.80}'{near}; there are {', '.join(sorted(tenants))}"
        )
    if rule.labels and (not rule.server or rule.tenant or rule.label):
        raise ConfigFault(f"{where}.labels: are given to a server or a tool; a rule for a tenant or a label gives none")
    if rule.durability != "async":
        return
    if not rule.tool or rule.label:
        raise ConfigFault(
            f"{where}.durability: async is enabled for one tool at a time, for its records can be lost; "
            "give server and tool, or choose another mode"
        )
    labels = {*settings.servers[rule.server].labels}
    for one in settings.rules:
        labels |= set(one.labels) if (one.server, one.tool) in ((rule.server, ""), (rule.server, rule.tool)) else set()
    if "read-only" not in labels:
        raise ConfigFault(
            f"{where}.durability: async is for tools labelled read-only, and {rule.server}/{rule.tool} is not; "
            "if it changes nothing, add labels: [read-only] to this rule"
        )


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
        raise ConfigFault(f"{where}: no server '{server}'{closest(server, settings.servers)}")


def _check_shown(name: str, length_max: int, where: str) -> None:
    if len(name) > length_max or not SHOWN_NAME.fullmatch(name):
        raise ConfigFault(
            f"{where}: a shown name is 1 to {length_max} of A-Z, a-z, 0-9, '_', '.' and '-', got '{name:.80}'"
        )


def closest(name: str, known: Any) -> str:
    """A suggestion to put behind a sentence; "" where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
