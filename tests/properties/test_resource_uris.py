"""However a resource's URI is spelled, what forbids or stops it does: Python's own reader of URLs and the one that
servers are made with (pydantic's, after WHATWG) say which spellings mean it.
"""

import contextlib
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, ValidationError
from tests.unit.test_edge_catalog import catalog, resource, server, template

from tidegate.claims import Principal
from tidegate.events import QuarantineImposed
from tidegate.ids import SubjectId
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.policy.bundle import bundle_of
from tidegate.policy.control import Quarantines
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.resource_uris import MalformedUri, normal, ruled
from tidegate_edge.ruling import Ruling

WHO = Principal(
    tenant="acme", issuer="i", subject="s", subject_id=SubjectId("s"), user="s", login="", agent="bot", agent_source="",
    actors=(), groups=(), scopes=(), token_id="", sid="", issued_us=0, expires_us=0, key="s",
)  # fmt: skip
FORBIDDEN = (
    "docs://payroll",
    "docs://shelf/payroll",
    "docs:///payroll",
    "file:///srv/payroll",
    "https://files.test/payroll",
    "urn:payroll",
)
LISTED = ("docs://handbook", " docs://pay roll", "DOCS://Payroll", "postgres://me@db/t", "docs://@payroll")
RULES = (
    "permit (principal, action, resource);",
    f"forbid (principal, action, resource) when {{ {[*FORBIDDEN]}.contains(context.args.uri) }};".replace("'", '"'),
)
CATALOG = catalog(
    server(
        "up",
        resources=[resource(uri) for uri in LISTED],
        templates=[template("docs://{name}"), template("docs://shelf/{name}")],
        capabilities={"resources": {}},
    ),
    server("other", resources=[resource("note://one")], templates=[template("file:///{+path}")]),
)
STOPPED = Quarantines()
for number, forbidden in enumerate(FORBIDDEN):
    imposed: dict[str, Any] = {"id": f"i{number}", "time_us": 0, "tenant": "acme", "region": "", "reason": "r"}
    name = f"{number}"
    for owner in ("up", "other"):
        STOPPED.apply(
            QuarantineImposed(
                **imposed, quarantine_id=f"{owner}{name}", scope="tool", value=f"{owner}/{forbidden}", actor=""
            )
        )


def ruling() -> Ruling:
    text = "\n".join(f'@id("r{number}") {rule}' for number, rule in enumerate(RULES))
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": text.encode()}
    facts = [ToolFacts(one, "resources/read", ("resource",)) for one in ("up", "other")]
    engine = Engine.build(bundle_of(files), facts, {"up": (), "other": ()})
    return Ruling(engine, Scanner(load_inspection(b"")), CATALOG, number=1, digest="d")


RULING = ruling()


PLAIN = re.compile(r"%(?:2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])")  # escapes of what needs none


def host_of(netloc: str) -> str:
    """As `.hostname` has it: without a user, in small letters; a port is another place's."""
    return netloc.rpartition("@")[2].lower().removesuffix(":")


def readings(uri: str) -> set[str]:
    """What servers may take a URI for."""
    found = {uri}
    with contextlib.suppress(ValidationError):
        found.add(str(AnyUrl(uri)))
    for told in tuple(found):
        try:
            split = urlsplit(told)
            found |= {split.geturl(), split._replace(netloc=host_of(split.netloc)).geturl()}
        except ValueError:
            continue
    return found | {PLAIN.sub(lambda escape: unquote(escape[0]), told) for told in found}


def is_refused(uri: str, door: str) -> bool:
    found = CATALOG.find_resource(door, uri)
    if found is None:
        return True
    item, sent = found
    stopped = STOPPED.match("", "", "", item.server, ruled(sent), 1) is not None
    denied = RULING.decide(WHO, item, {"uri": sent}).effect == "deny"
    assert stopped is denied
    return denied


WEDGES = (
    "\t",
    "\n",
    "\r",
    " ",
    "\x00",
    "\x7f",
    "\u00a0",
    "@",
    ":",
    "?",
    "#",
    "/",
    "./",
    "x/../",
    "\\",
    ":0",
    "%",
    "a@",
)


EDITS = ("case", "case", "escape", *WEDGES)


def edited(uri: str, edits: list[tuple[int, str]], before: str, after: str) -> str:
    """With letters in another case, escaped, or something between them."""
    chars = list(uri)
    for at, how in edits:
        char = chars[at % len(chars)]
        changed = {"case": char.swapcase(), "escape": f"%{ord(char[0]):02x}{char[1:]}"}
        chars[at % len(chars)] = changed.get(how, how + char)
    return before + "".join(chars) + after


spellings = st.builds(
    edited,
    st.sampled_from(FORBIDDEN),
    st.lists(st.tuples(st.integers(0, 31), st.sampled_from(EDITS)), max_size=5),
    st.sampled_from(("", "", "", " ", "\n", "other~")),
    st.sampled_from(("", "", "", *WEDGES)),
)
MEANT = frozenset().union(*(readings(uri) for uri in FORBIDDEN))


@settings(max_examples=500, deadline=None)
@given(spellings, st.sampled_from(("", "up", "other")))
@example("DOCS://payroll", "up")
@example("docs://pay\troll", "")
@example("docs://@payroll", "up")
@example("docs://payroll?", "up")
@example("docs:////payroll", "up")
@example("docs://PAYROLL", "up")
@example("docs://@payroll", "up")
@example("file://localhost/srv/payroll", "")
def test_no_spelling_of_a_forbidden_uri_passes(uri: str, door: str) -> None:
    found = CATALOG.find_resource(door, uri)
    sent = readings(found[1]) if found else set()
    assert MEANT.isdisjoint(readings(uri) | sent) or is_refused(uri, door)


@settings(max_examples=300, deadline=None)
@given(st.one_of(spellings, st.text(max_size=40).map("docs://".__add__), st.text(max_size=40)))
def test_a_normal_form_is_its_own_and_rules_see_one_spelling(uri: str) -> None:
    assert ruled(ruled(uri)) == ruled(uri)
    try:
        sent = normal(uri)
    except MalformedUri:
        return
    assert normal(sent) == sent
    assert ruled(sent) == ruled(uri)
    assert sent.isascii()
    assert sent.isprintable()


def test_what_a_server_lists_is_sent_as_it_is_listed() -> None:
    for uri in LISTED:
        found = CATALOG.find_resource("up", uri)
        assert found is not None
        assert found[1] == uri
    assert is_refused("DOCS://Payroll", "up")
    assert not is_refused("docs://handbook", "up")
    assert not is_refused("postgres://me@db/t", "up")
