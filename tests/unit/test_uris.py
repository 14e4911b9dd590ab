"""Resource URIs: which template they are of, and the marks that tell two servers' equal ones apart."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.uri_template import InvalidUriTemplate, UriTemplate

from tidegate_edge.uris import EXPRESSIONS_MAX, TEMPLATE_CHARS_MAX, compiled, first_match, marked, parted

SERVERS = st.from_regex(r"[a-z][a-z0-9-]{0,11}", fullmatch=True)


@pytest.mark.parametrize(
    ("template", "uri", "matches"),
    [
        ("test://template/{id}/data", "test://template/123/data", True),
        ("test://template/{id}/data", "test://template/a%2Fb/data", True),
        ("test://template/{id}/data", "test://template/a/b/data", False),
        ("test://template/{id}/data", "test://template/123/dat", False),
        ("test://template/{id}/data", "test://template/123/data/", False),
        ("test://template/{id}/data", "test://other/123/data", False),
        ("file:///{+path}", "file:///etc/hosts", True),
        ("file:///{+path}", "file:/etc/hosts", False),
        ("s://q{?a,b}", "s://q", True),
        ("s://q{?a,b}", "s://q?b=2&a=/x", True),
        ("s://q{?a,b}", "s://qx", False),
        ("s://q?x=1{&c}", "s://q?x=1&c=2", True),
        ("a://{x}{/y*}{.z}", "a://1/2/3.txt", True),
        ("a://{x}{#f}", "a://1#2", True),
        ("a://{x}/{x}", "a://1", False),
        ("plain://uri", "plain://uri", True),
        ("plain://uri", "plain://uri2", False),
        ("{+any}", "x://y", True),
        ("ü://{x}", "ü://é", True),
    ],
)
def test_a_uri_is_of_its_template(template: str, uri: str, matches: bool) -> None:
    found = compiled(template)
    assert found is not None
    assert found.matches(uri) is matches


@pytest.mark.parametrize(
    "template", ["a://{", "a://}", "a://{}", "a://{{x}}", "a://{!x}", "a://{=x}", "x" * (TEMPLATE_CHARS_MAX + 1)]
)
def test_what_is_no_template_matches_nothing(template: str) -> None:
    assert compiled(template) is None


literals = st.text(alphabet="ab/.-", max_size=4)
expressions = st.builds(
    lambda operator, name: f"{{{operator}{name}}}",
    st.sampled_from(["", "+", "#", ".", "/", ";", "?", "&"]),
    st.sampled_from("xyz"),
)
templates = st.lists(st.one_of(literals, expressions), max_size=6).map(lambda parts: "t://" + "".join(parts))


@given(templates, st.text(alphabet="ab/.-?#;&=x", max_size=12).map("t://".__add__))
def test_what_a_server_on_the_official_library_reads_as_its_own_is_routed_to_it(template: str, uri: str) -> None:
    try:
        reference = UriTemplate.parse(template)
    except InvalidUriTemplate:
        return
    if reference.match(uri) is not None:
        found = compiled(template)
        assert found is not None
        assert found.matches(uri)


@given(templates, st.dictionaries(st.sampled_from("xyz"), st.text(alphabet="ab /é", min_size=1, max_size=5)))
def test_what_a_template_expands_to_is_of_it(template: str, values: dict[str, str]) -> None:
    try:
        expanded = UriTemplate.parse(template).expand(values)
    except InvalidUriTemplate:
        return
    found = compiled(template)
    assert found is not None
    assert found.matches(expanded)


def test_no_template_makes_matching_slow() -> None:
    assert compiled("a://" + "{x}a" * 200) is None
    hostile = compiled("a://" + "{x}a" * EXPRESSIONS_MAX)
    assert hostile is not None
    began = time.process_time()
    assert not hostile.matches("a://" + "a" * 4_000 + "b")
    assert time.process_time() - began < 0.5
    assert not hostile.matches("a://" + "a" * 10_000)  # longer than URIs are here


def test_a_server_s_many_templates_take_no_time_from_another_s() -> None:
    costly = [(found, "bad") for n in range(2_000) if (found := compiled("{+a}{?b}" * 8 + str(n))) is not None]
    honest = compiled("a{x}")
    assert honest is not None
    assert len(costly) == 2_000
    began = time.process_time()
    assert first_match([*costly, (honest, "good")], "a" * 4_000, str) == "good"
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("ui://app/x", "ui://maps~app/x"),
        ("file:///etc/hosts", "file://maps~/etc/hosts"),
        ("urn:isbn:1", "urn:maps~isbn:1"),
        ("test://x/{id}", "test://maps~x/{id}"),
        ("no scheme", "no scheme"),
    ],
)
def test_a_mark_keeps_the_scheme(uri: str, shown: str) -> None:
    assert marked("maps", uri) == shown


@given(SERVERS, st.from_regex(r"[a-z][a-z0-9+.-]{0,5}:(//)?", fullmatch=True), st.text(max_size=20))
def test_a_mark_leads_back_to_the_server_and_its_uri(server: str, scheme: str, rest: str) -> None:
    if scheme.endswith(":") and rest.startswith("//"):
        return  # then the scheme's part is the longer one
    assert parted(marked(server, scheme + rest)) == (server, scheme + rest)


@pytest.mark.parametrize("uri", ["", "x", "ui://app", "ui://Maps~app", "ui://~app", "ui://-a~b", "://a~b"])
def test_other_uris_carry_no_mark(uri: str) -> None:
    assert parted(uri) is None
