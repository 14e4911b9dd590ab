"""Resource URIs: one spelling for each, and what has none."""

import re

import pytest

from tidegate.policy.bundle import bundle_of
from tidegate.policy.check import check_bundle
from tidegate.policy.resource_uris import MalformedUri, normal, ruled


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("docs://payroll", "docs://payroll"),
        ("DOCS://payroll", "docs://payroll"),
        ("docs://%70ay%72oll", "docs://payroll"),
        ("docs://x/../payroll", "docs://x/payroll"),
        ("docs://x/%2E%2e/a/./b/..", "docs://x/a/"),
        ("docs://x/%c3%a4/ä?q=ä#ä", "docs://x/%C3%A4/%C3%A4?q=%C3%A4#%C3%A4"),
        ("docs://x/a|b^[]{}", "docs://x/a%7Cb%5E%5B%5D%7B%7D"),
        ("docs://payroll?#", "docs://payroll"),
        ("docs://payroll:", "docs://payroll"),
        ("docs://payroll:0080", "docs://payroll:80"),
        ("docs:/payroll", "docs:///payroll"),
        ("greeting://Alice", "greeting://Alice"),
        ("urn:ISBN:1", "urn:ISBN:1"),
        ("HTTP://Example.COM:80", "http://example.com/"),
        ("http://[0:0::1]:8080/x", "http://[::1]:8080/x"),
        ("http://[::ffff:1.2.3.4]/", "http://[::ffff:102:304]/"),
        ("file:/etc/hosts", "file:///etc/hosts"),
        ("file://LocalHost/etc/hosts", "file:///etc/hosts"),
        ("file://%6cocalhost/etc/hosts", "file:///etc/hosts"),
    ],
)
def test_a_uri_is_sent_in_its_normal_form(given: str, sent: str) -> None:
    assert normal(given) == sent
    assert normal(sent) == sent


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("docs://pay\troll", "U+0009"),
        ("docs://pay\nroll", "U+000A"),
        (" docs://payroll", "U+0020"),
        ("docs://payroll\u3000", "U+3000"),
        ("docs://pay\x7froll", "U+007F"),
        ("docs:\\\\payroll", "backslash"),
        ("docs://pay%7", "hex digits"),
        ("docs://@payroll", "user"),
        ("docs://me:secret@payroll", "user"),
        ("payroll", "scheme"),
        ("docs:////payroll", "empty host"),
        ("docs:/.//payroll", "empty host"),
        ("docs://[payroll]/x", "IPv6"),
        ("urn:a/../b", "path"),
        ("http:///payroll", "no host"),
        ("http:payroll", "no host"),
        ("http://127.1/", "IPv4"),
        ("http://0x7f000001/", "IPv4"),
        ("http://\uff50ayroll/", "ASCII"),
        ("http://%EF%BD%90ayroll/", "ASCII"),
        ("http://x:y/", "port"),
        ("file:etc", "nowhere"),
        ("docs://:80/payroll", "no host"),
    ],
)
def test_what_no_uri_holds_or_is_read_in_many_ways_has_no_normal_form(given: str, why: str) -> None:
    with pytest.raises(MalformedUri, match=re.escape(why)):
        normal(given)


@pytest.mark.parametrize(
    ("listed", "seen"),
    [
        ("greeting://Alice", "greeting://alice"),
        ("docs://{Name}/X", "docs://{Name}/X"),
        ("docs://%C3%9C/x", "docs://%C3%9C/x"),
        ("postgres://Me@Host/t/schema", "postgres://Me@host/t/schema"),
        ("docs://@payroll", "docs://payroll"),
        (" docs://pay\troll", "docs://payroll"),
        ("docs://a%zz", "docs://a%25zz"),
        ("file:///My Docs/x", "file:///My%20Docs/x"),
        ("hand book", "hand%20book"),
    ],
)
def test_rules_see_one_spelling_of_whatever_a_server_lists(listed: str, seen: str) -> None:
    assert ruled(listed) == seen
    assert ruled(seen) == seen


@pytest.mark.parametrize(
    ("condition", "written"),
    [
        ('context.args.uri == "docs://payroll"', None),
        ('context.args.uri == "Docs://Payroll"', "docs://payroll"),
        ('context.args.uri like "docs://Pay*"', "docs://pay"),
        ('context.args.uri like "docs://pay*"', None),
        ('context.args.uri like "docs:*"', None),
        ('context.args.uri like "https://example.com*"', None),
        ('context.args.uri == "https://example.com"', "https://example.com/"),
        ('["docs://a", "docs://x/../b"].contains(context.args.uri)', "docs://x/b"),
        ('context.args.uri like "*/my file*"', "/my%20file"),
        ('context.args.uri like "*payroll*"', None),
    ],
)
def test_check_points_out_a_uri_that_no_resource_has(condition: str, written: str | None) -> None:
    text = f'@id("r") forbid (principal, action == Action::"docs/resources/read", resource) when {{ {condition} }};'
    bundle = bundle_of({"manifest.json": b'{"v":1,"name":"x"}', "policies/p.cedar": text.encode()})
    told = [problem for problem in check_bundle(bundle) if "no resource's URI" in problem.sentence]
    assert [problem.rule for problem in told] == ([] if written is None else ["r"])
    assert written is None or f"write '{written}'" in told[0].sentence
