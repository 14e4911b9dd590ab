"""How calls are recorded: which rule counts, that labels only make it stricter, and which settings are refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigFault
from tidegate.settings import Audit, Rule
from tidegate.settings_file import load_settings
from tidegate_edge.calls import Terms
from tidegate_edge.terms import CAPTURES, MODES, terms_for

SERVERS = "servers: {wiki: {command: [x]}, docs: {command: [x], labels: [read-only]}}\n"


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([], Terms("spool", "masked")),
        ([Rule(server="wiki", durability="strict")], Terms("strict", "masked")),
        ([Rule(server="other", durability="strict")], Terms("spool", "masked")),
        ([Rule(tenant="acme", capture="digest")], Terms("spool", "digest")),
        ([Rule(tenant="else", capture="digest")], Terms("spool", "masked")),
        (
            [Rule(server="wiki", tool="get", capture="full"), Rule(server="wiki", capture="none")],
            Terms("spool", "full"),
        ),
        ([Rule(server="wiki", capture="none"), Rule(tenant="acme", capture="full")], Terms("spool", "none")),
        ([Rule(label="sensitive", capture="digest", durability="strict")], Terms("strict", "digest")),
        ([Rule(label="sensitive", capture="full")], Terms("spool", "masked")),
        (
            [Rule(server="wiki", tool="get", capture="none"), Rule(label="sensitive", capture="digest")],
            Terms("spool", "none"),
        ),
        (
            [Rule(server="wiki", tool="get", capture="full"), Rule(label="sensitive", capture="digest")],
            Terms("spool", "digest"),
        ),
        ([Rule(label="egress", capture="none")], Terms("spool", "masked")),
        ([Rule(server="wiki", label="sensitive", capture="none")], Terms("spool", "none")),
        ([Rule(server="docs", label="sensitive", capture="none")], Terms("spool", "masked")),
        ([Rule(server="wiki", tool="get", durability="async")], Terms("async", "masked")),
        ([Rule(server="wiki", durability="async")], Terms("spool", "masked")),
        (
            [Rule(server="wiki", tool="get", durability="async"), Rule(label="sensitive", durability="strict")],
            Terms("strict", "masked"),
        ),
    ],
)
def test_the_most_particular_rule_counts_and_labels_make_it_stricter(rules: list[Rule], wanted: Terms) -> None:
    assert terms_for(Audit(), rules, "acme", "wiki", "get", ("sensitive", "read-only")) == wanted


def test_a_tool_that_is_not_labelled_read_only_is_never_async() -> None:
    rule = Rule(server="wiki", tool="get", durability="async")
    assert terms_for(Audit(), [rule], "acme", "wiki", "get", ("sensitive",)).mode == "spool"


a_rule = st.builds(
    Rule,
    server=st.sampled_from(["", "wiki"]),
    tool=st.sampled_from(["", "get"]),
    tenant=st.sampled_from(["", "acme"]),
    capture=st.none() | st.sampled_from(CAPTURES),
    durability=st.none() | st.sampled_from(MODES),
)


@given(st.lists(a_rule, max_size=6), st.sampled_from(CAPTURES), st.sampled_from(MODES))
def test_a_rule_for_a_label_holds_whatever_the_other_rules_say(rules: list[Rule], capture: str, mode: str) -> None:
    floor = Rule(label="sensitive", capture=capture, durability=mode)  # type: ignore[arg-type]
    before = terms_for(Audit(), rules, "acme", "wiki", "get", ("sensitive",))
    after = terms_for(Audit(), [floor, *rules], "acme", "wiki", "get", ("sensitive",))
    assert CAPTURES.index(after.capture) == max(CAPTURES.index(before.capture), CAPTURES.index(capture))  # type: ignore[arg-type]
    assert MODES.index(after.mode) == max(MODES.index(before.mode), MODES.index(mode))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("audit: {mode: async}", "$.audit.mode: async is no default"),
        ("rules: [{server: docs, durability: async}]", "$.rules[0].durability: async is enabled for one tool"),
        ("rules: [{label: read-only, durability: async}]", "$.rules[0].durability: async is enabled for one tool"),
        ("rules: [{server: wiki, tool: get, durability: async}]", "wiki/get is not; if it changes nothing, add labels"),
        ("rules: [{capture: none}]", "$.rules[0]: give server, tenant or label"),
        ("rules: [{tool: get, tenant: default}]", "$.rules[0].tool: give the server"),
        ("rules: [{tenant: defalt, capture: none}]", "no tenant 'defalt'; did you mean 'default'?"),
        ("rules: [{label: sensitive, labels: [egress]}]", "$.rules[0].labels: are given to a server or a tool"),
        ("rules: [{server: wikki}]", "no server 'wikki'; did you mean 'wiki'?"),
    ],
)
def test_a_rule_that_could_not_hold_is_refused_with_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text(SERVERS + text)
    with pytest.raises(ConfigFault) as caught:
        load_settings(file)
    assert words in caught.value.sentence


@pytest.mark.parametrize(
    "rules",
    [
        "{server: docs, tool: get, durability: async}",
        "{server: wiki, tool: get, durability: async, labels: [read-only]}",
        "{server: wiki, labels: [read-only]}, {server: wiki, tool: get, durability: async}",
        "{tenant: default, durability: strict}, {label: sensitive, capture: digest}",
    ],
)
def test_async_is_for_one_tool_that_is_labelled_read_only(tmp_path: Path, rules: str) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text(f"{SERVERS}rules: [{rules}]")
    assert load_settings(file).rules
