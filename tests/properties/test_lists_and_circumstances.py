"""Lists under rules over circumstances: what may be called in some is listed, what may be called in none is not."""

import json
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.claims import Principal
from tidegate.ids import SubjectId
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.limits import Limits
from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.sealing import Sealer, SealingKey
from tidegate_edge import lists
from tidegate_edge.catalog import Catalog, Item, Plan, shelve
from tidegate_edge.messages import encode
from tidegate_edge.releases import facts_of
from tidegate_edge.ruling import Ruling
from tidegate_edge.upstream.port import Definitions

SEALER = Sealer([SealingKey.generate()])
NAMES = ("a", "b")
URIS = ("docs://1", "docs://2", "hr://1")
OFFERED = Definitions(
    tools=tuple(encode({"name": name, "inputSchema": {"type": "object"}}) for name in NAMES),
    prompts=tuple(encode({"name": name}) for name in NAMES),
    resources=tuple(encode({"name": "r", "uri": uri}) for uri in URIS),
    templates=(),
    capabilities=encode({}),
)
CONDITIONS = (
    'context.taint.contains("x")',
    "context.taint.isEmpty()",
    'context has network && context.network.ip.isInRange(ip("10.0.0.0/8"))',
    "context.network.ip.isLoopback()",
    "context.time.hour < 12",
    "context.time.weekday == 7",
    'context.now < datetime("2026-06-01")',
    'context has protocol && context.protocol == "2026-07-28"',
)
NAMED = (
    'context.args has uri && context.args.uri like "docs://*"',
    'context.args has name && context.args.name == "a"',
    "true",
)
HOURS = 3_600_000_000
SITUATIONS = [
    Facts(start + hour * HOURS, address, taint, protocol)
    for start in (1_768_000_000_000_000, 1_790_000_000_000_000)
    for hour in range(0, 24 * 8, 29)
    for address in ("10.1.2.3", "127.0.0.1", "203.0.113.9")
    for taint in ((), ("x",))
    for protocol in ("2026-07-28", "2025-11-25")
]  # fmt: skip
WHO = Principal(
    tenant="t", issuer="i", subject="s", subject_id=SubjectId("s"), user="s", login="", agent="bot", agent_source="",
    actors=(), groups=(), scopes=(), token_id="", sid="", issued_us=0, expires_us=0, key="s",
)  # fmt: skip


def ruling_of(*rules: str) -> Ruling:
    catalog = Catalog({"up": shelve("up", OFFERED)}, Plan())
    text = "\n".join(f'@id("r{number}") {rule};' for number, rule in enumerate(rules))
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": text.encode()}
    engine = Engine.build(bundle_of(files), facts_of(catalog), {"up": ()})
    return Ruling(engine, Scanner(load_inspection(b"")), catalog, number=1, digest="d")


def listed(ruling: Ruling, kind: Any) -> set[str]:
    edge: Any = SimpleNamespace(discovery=SimpleNamespace(troubles={}), sealer=SEALER, limits=Limits())
    page = json.loads(lists.listed(edge, ruling, WHO, "up", kind, True, None))
    return {one["uri" if kind == "resource" else "name"] for one in page[lists.MEMBERS[kind]]}


def offered(ruling: Ruling) -> list[Item]:
    door = ruling.catalog.door("up")
    return [*door.tools.values(), *door.prompts.values(), *door.resources.values()]


def arguments_of(item: Item) -> list[dict[str, Any]]:
    if item.kind == "tool":
        return [{}, {"uri": "docs://1"}, {"name": "a"}]
    return [{"name": item.name, "arguments": {}} if item.kind == "prompt" else {"uri": item.name}]


def is_had(ruling: Ruling, item: Item) -> bool:
    """In one of the situations."""
    needs = ruling.needs(WHO, item)
    situations = SITUATIONS if needs else [NO_FACTS]
    return any(
        ruling.decide(WHO, item, arguments, facts).effect != "deny"
        for arguments in arguments_of(item)
        for facts in situations
    )


def scoped(effect: str, named: str, condition: str, word: str) -> str:
    return f"{effect} (principal, action, resource) when {{ {named} }} {word} {{ {condition} }}"


rules = st.builds(
    scoped,
    st.sampled_from(["permit", "permit", "forbid"]),
    st.sampled_from(NAMED),
    st.sampled_from([*CONDITIONS, "true"]),
    st.sampled_from(["when", "unless"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(rules, min_size=1, max_size=4))
def test_what_may_be_had_in_some_circumstances_is_listed(given_rules: list[str]) -> None:
    ruling = ruling_of(*given_rules)
    shown = {kind: listed(ruling, kind) for kind in ("tool", "prompt", "resource")}
    for item in offered(ruling):
        if is_had(ruling, item):
            assert item.name in shown[item.kind]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMED), st.sampled_from(CONDITIONS), st.sampled_from(["when", "unless"]), st.booleans())
def test_what_is_listed_may_be_had_in_some_circumstances(named: str, condition: str, word: str, forbids: bool) -> None:
    rule = scoped("forbid" if forbids else "permit", named, condition, word)
    ruling = ruling_of(rule, *(["permit (principal, action, resource)"] if forbids else []))
    for item in offered(ruling):
        assert (item.name in listed(ruling, item.kind)) == is_had(ruling, item), (item.kind, item.name)


def test_a_resource_that_no_circumstance_opens_is_not_listed() -> None:
    # Cedar reads from left to right: what is known comes first, or it looks as if circumstances could matter.
    both = 'context.args.uri like "docs://*" && context.time.hour < 12'
    ruling = ruling_of(f'permit (principal, action in Action::"resource", resource) when {{ {both} }}')
    assert listed(ruling, "resource") == {"docs://1", "docs://2"}
    assert listed(ruling, "tool") == listed(ruling, "prompt") == set()


def test_the_situations_are_of_every_kind() -> None:
    assert {ip_address(one.address).is_loopback for one in SITUATIONS} == {True, False}
    ruling = ruling_of(*(scoped("permit", "true", condition, "when") for condition in CONDITIONS))
    tool = offered(ruling)[0]
    met = {rule for facts in SITUATIONS for rule in ruling.decide(WHO, tool, {}, facts).rules}
    assert met == {f"r{number}" for number in range(len(CONDITIONS))}
