"""The engine: one table of decisions, then the corners."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.errors import BundleFault, ConfigFault
from tidegate.policy.bundle import bundle_of, load_bundle
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import Facts

BANK = Path(__file__).parent.parent / "cases" / "bank"
TOOLS = [
    ToolFacts("fs", "read", ("read",)),
    ToolFacts("fs", "write"),
    ToolFacts("bank", "pay", ("egress",)),
    ToolFacts("time", "now"),
]
SERVERS = {"fs": ("files",), "bank": (), "time": ()}


@dataclass(frozen=True)
class Principal:
    user: str
    agent: str = "claude-code"
    groups: tuple[str, ...] = ()


ALICE = Principal("alice", groups=("eng",))
FRED = Principal("fred", "ledger", ("finance",))
EVE = Principal("eve")
EVERYTHING = '@id("everything") permit (principal, action, resource);'


def engine_of(policies: str, entities: str = "[]", tools: list[ToolFacts] | None = None) -> Engine:
    files = {
        "manifest.json": b'{"v": 1, "name": "t"}',
        "policies/p.cedar": policies.encode(),
        "entities.json": entities.encode(),
    }
    return Engine.build(bundle_of(files), TOOLS if tools is None else tools, SERVERS)


@pytest.fixture(scope="module")
def bank() -> Engine:
    return Engine.build(load_bundle(BANK), TOOLS, SERVERS)


@pytest.mark.parametrize(
    ("who", "server", "tool", "arguments", "effect", "reason", "rules"),
    [
        (ALICE, "fs", "read", {"path": "/home/x"}, "allow", "granted", ("engineers-read-home",)),
        (ALICE, "fs", "read", {"path": "/etc/x"}, "deny", "tool-not-granted", ()),
        (ALICE, "fs", "read", {"path": "/home/x.pem"}, "deny", "forbidden-by-rule", ("no-keys",)),
        (ALICE, "fs", "read", {}, "deny", "evaluation-error", ("engineers-read-home",)),
        (ALICE, "fs", "read", {"path": None}, "deny", "evaluation-error", ("engineers-read-home",)),
        (ALICE, "fs", "read", {"path": 7}, "deny", "arguments-unlike-schema", ("engineers-read-home", "no-keys")),
        (
            ALICE,
            "fs",
            "read",
            {"path": 1e300},
            "deny",
            "argument-not-representable",
            ("engineers-read-home", "no-keys"),
        ),
        (ALICE, "fs", "read", {"path": "/home/x", "unused": 1e300}, "allow", "granted", ("engineers-read-home",)),
        (ALICE, "fs", "write", {"path": "/home/x"}, "deny", "tool-not-granted", ()),
        (ALICE, "unheard", "of", {}, "deny", "tool-not-granted", ()),
        (EVE, "fs", "read", {"path": "/home/x"}, "deny", "tool-not-granted", ()),
        (EVE, "time", "now", {"path": "x"}, "allow", "granted", ("clock-for-all",)),
        (FRED, "bank", "pay", {"amount": 5}, "allow", "granted", ("pay-small",)),
        (FRED, "bank", "pay", {"amount": 5.25}, "allow", "granted", ("pay-small",)),
        (FRED, "bank", "pay", {"amount": 60}, "ask", "approval-required", ("pay-with-care",)),
        (FRED, "bank", "pay", {"amount": 100.0}, "deny", "tool-not-granted", ()),
        (
            FRED,
            "bank",
            "pay",
            {"amount": 0.00001},
            "deny",
            "argument-not-representable",
            ("pay-small", "pay-with-care"),
        ),
        (Principal("fred", "cursor", ("finance",)), "bank", "pay", {"amount": 60}, "deny", "tool-not-granted", ()),
        (
            Principal("dora", "ledger", ("finance",)),
            "bank",
            "pay",
            {"amount": 5},
            "deny",
            "forbidden-by-rule",
            ("no-egress-for-interns",),
        ),
    ],
)
def test_decisions(
    bank: Engine,
    who: Principal,
    server: str,
    tool: str,
    arguments: dict[str, object],
    effect: str,
    reason: str,
    rules: tuple[str, ...],
) -> None:
    verdict = bank.evaluate(who, server, tool, arguments)
    assert (verdict.effect, verdict.reason, verdict.rules) == (effect, reason, rules)
    assert bool(verdict.message) == (effect != "allow")


def test_a_denial_speaks_in_the_words_of_its_rule(bank: Engine) -> None:
    verdict = bank.evaluate(ALICE, "fs", "read", {"path": "a.pem"})
    assert verdict.message == "Private keys stay where they are."
    assert verdict.advice == "Ask the security team for a deploy key."
    assert verdict.told == f"{verdict.message} {verdict.advice}"


def test_a_denial_without_words_names_its_rule() -> None:
    engine = engine_of('@id("closed") forbid (principal, action, resource);')
    assert "'closed'" in engine.evaluate(ALICE, "fs", "read", {}).message


def test_an_error_names_what_is_missing_but_never_a_value() -> None:
    engine = engine_of(
        '@id("a") permit (principal, action, resource) when { decimal(context.args.text) == decimal("1.0") };'
    )
    assert "attribute `text`" in engine.evaluate(ALICE, "fs", "read", {}).message
    verdict = engine.evaluate(ALICE, "fs", "read", {"text": "hunter2"})
    assert (verdict.effect, verdict.reason) == ("deny", "evaluation-error")
    assert "hunter2" not in verdict.message


@pytest.mark.parametrize(
    ("who", "server", "tool", "standing", "visible"),
    [
        (ALICE, "fs", "read", None, True),
        (EVE, "fs", "read", None, False),  # no rule can grant it; which rule denies depends on the path
        (ALICE, "unheard", "of", None, False),
        (FRED, "bank", "pay", None, True),
        (
            Principal("fred", "cursor", ("finance",)),
            "bank",
            "pay",
            None,
            False,
        ),  # the agent is known, so this is certain
        (Principal("dora", "ledger", ("finance",)), "bank", "pay", None, False),
    ],
)
def test_what_holds_whatever_the_arguments_are(
    bank: Engine, who: Principal, server: str, tool: str, standing: str | None, visible: bool
) -> None:
    verdict = bank.standing(who, server, tool)
    assert (verdict.effect if verdict else None) == standing
    assert bank.visible(who, server, tool) is visible


@pytest.mark.parametrize(
    ("policies", "effect", "visible"),
    [
        ('@id("a") permit (principal, action, resource);', "allow", True),
        (
            '@id("a") permit (principal,action,resource) when { context.agent.id == "claude-code" || context.args.y };',
            "allow",
            True,
        ),
        (
            '@id("a") permit (principal, action, resource) when { context.agent.id == "cursor" && context.args.x };',
            "deny",
            False,
        ),
        (
            '@id("a") permit (principal, action, resource); @id("f") forbid (principal, action, resource);',
            "deny",
            False,
        ),
        (
            '@id("a") permit (principal, action, resource);'
            '@id("f") @effect("ask") forbid (principal, action, resource);',
            "ask",
            True,
        ),
        ('@id("f") @effect("ask") forbid (principal, action, resource);', "deny", False),
        ('@id("a") permit (principal, action, resource) when { principal.level > 3 };', "deny", False),
        ("", "deny", False),
    ],
)
def test_standing_verdicts(policies: str, effect: str, visible: bool) -> None:
    engine = engine_of(policies)
    verdict = engine.standing(ALICE, "fs", "read")
    assert verdict is not None
    assert (verdict.effect, engine.visible(ALICE, "fs", "read")) == (effect, visible)
    assert engine.evaluate(ALICE, "fs", "read", {"x": 1e300}) == verdict


def test_hundreds_of_alternatives_in_one_rule_are_decided() -> None:
    alternatives = " || ".join(f'context.args.path like "/srv/{number}/*"' for number in range(300))
    engine = engine_of(f'@id("wide") permit (principal, action, resource) when {{ {alternatives} }};')
    assert engine.evaluate(ALICE, "fs", "read", {"path": "/srv/299/x"}).effect == "allow"
    assert engine.evaluate(ALICE, "fs", "read", {"path": "/srv/300/x"}).effect == "deny"
    assert engine.visible(ALICE, "fs", "read")


def test_an_error_in_one_rule_denies_though_another_grants() -> None:
    engine = engine_of(f'{EVERYTHING} @id("odd") permit (principal, action, resource) when {{ context.args.x > 1 }};')
    verdict = engine.evaluate(ALICE, "fs", "read", {})
    assert (verdict.effect, verdict.reason, verdict.rules) == ("deny", "evaluation-error", ("odd",))
    assert engine.evaluate(ALICE, "fs", "read", {"x": 2}).effect == "allow"


def test_a_rule_on_the_whole_context_sees_the_whole_call() -> None:
    agent = '{"id": "claude-code", "classes": []}'
    condition = f'context == {{"agent": {agent}, "args": {{"a": 1, "b": {{"c": "x"}}}}, "taint": []}}'
    engine = engine_of(f'@id("exact") permit (principal, action, resource) when {{ {condition} }};')
    assert engine.evaluate(ALICE, "fs", "read", {"a": 1, "b": {"c": "x"}}).effect == "allow"
    assert engine.evaluate(ALICE, "fs", "read", {"a": 1, "b": {"c": "x"}, "d": 1}).effect == "deny"


def test_labels_of_server_and_tool_are_groups_of_the_action_and_the_servers_own_an_attribute() -> None:
    policies = (
        '@id("tool-label") permit (principal, action in Action::"read", resource);'
        '@id("server-label") permit (principal, action in Action::"files", resource);'
        '@id("attribute") permit (principal, action, resource) when { resource.labels.contains("files") };'
        '@id("not-an-attribute") permit (principal, action, resource) when { resource.labels.contains("read") };'
    )
    assert engine_of(policies).evaluate(ALICE, "fs", "read", {}).rules == ("attribute", "server-label", "tool-label")


def test_entities_of_the_bundle_extend_actions_servers_and_users() -> None:
    entities = (
        '[{"uid":{"type":"Action","id":"fs/read"},"attrs":{},"parents":[{"type":"Action","id":"harmless"}]},'
        '{"uid":{"type":"Server","id":"fs"},"attrs":{"owner":{"__entity":{"type":"User","id":"alice"}}},'
        '"parents":[{"type":"Zone","id":"z"}]},'
        '{"uid":{"type":"User","id":"alice"},"attrs":{"level":4},"parents":[{"type":"Group","id":"vip"}]}]'
    )
    policies = (
        '@id("action") permit (principal, action in Action::"harmless", resource);'
        '@id("server") permit (principal, action, resource in Zone::"z");'
        '@id("owner") permit (principal,action,resource) when { resource.owner == principal && principal.level == 4 };'
        '@id("group") permit (principal in Group::"vip", action, resource);'
        '@id("token-group") permit (principal in Group::"eng", action, resource);'
    )
    verdict = engine_of(policies, entities).evaluate(ALICE, "fs", "read", {})
    assert verdict.rules == ("action", "group", "owner", "server", "token-group")


def test_with_tools_follows_the_catalogue_and_keeps_the_old_engine_as_it_was() -> None:
    policies = '@id("a") permit (principal, action in Action::"read", resource);'
    before = engine_of(policies)
    after = before.with_tools([ToolFacts("fs", "write", ("read",))], SERVERS)
    assert after.digest == before.digest
    assert after.evaluate(ALICE, "fs", "write", {}).effect == "allow"
    assert before.evaluate(ALICE, "fs", "write", {}).effect == "deny"
    assert after.evaluate(ALICE, "fs", "read", {}).effect == "deny"


def test_a_label_that_looks_like_a_tool_is_refused() -> None:
    with pytest.raises(ConfigFault, match="marks tools"):
        engine_of('@id("a") permit (principal, action, resource);', tools=[ToolFacts("fs", "read", ("bank/pay",))])


def test_a_bundle_that_does_not_parse_builds_no_engine() -> None:
    with pytest.raises(BundleFault) as fault:
        engine_of("permit (principal, action")
    assert fault.value.problems[0].path == "policies/p.cedar"


def test_an_argument_never_becomes_an_entity_or_a_call_of_an_extension() -> None:
    policies = (
        '@id("entity") permit (principal, action, resource) when { context.args.who == User::"admin" };'
        '@id("decimal") permit (principal, action, resource) when { context.args.who == decimal("1.0") };'
        '@id("all") permit (principal, action, resource) when { context.args == {"who": User::"admin"} };'
    )
    engine = engine_of(policies)
    for forged in (
        {"__entity": {"type": "User", "id": "admin"}},
        {"__extn": {"fn": "decimal", "arg": "1.0"}},
        {"__expr": 'User::"admin"'},
        {"type": "User", "id": "admin"},
        'User::"admin"',
    ):
        assert engine.evaluate(EVE, "fs", "read", {"who": forged}).effect == "deny"
    assert engine.evaluate(EVE, "fs", "read", {"__entity": {"type": "User", "id": "admin"}}).effect == "deny"


@pytest.mark.parametrize("user", ["a\u200bb", "a\nb", 'quo"te', "back\\slash", "\x00", 'User::"admin"', "é", "\ud800"])
def test_strange_user_ids_are_only_ever_themselves(user: str) -> None:
    engine = engine_of(
        '@id("admin") permit (principal == User::"admin", action, resource);'
        '@id("x") permit (principal, action, resource) when { context.args.x };'
    )
    assert engine.evaluate(Principal(user), "fs", "read", {"x": False}).effect == "deny"


def test_groups_cannot_form_a_cycle_that_breaks_the_engine() -> None:
    entities = '[{"uid":{"type":"Group","id":"a"},"attrs":{},"parents":[{"type":"User","id":"mallory"}]}]'
    engine = engine_of('@id("a") permit (principal, action, resource);', entities)
    verdict = engine.evaluate(Principal("mallory", groups=("a",)), "fs", "read", {})
    assert (verdict.effect, verdict.reason) == ("deny", "evaluation-error")


def test_the_prepared_decisions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of('@id("a") permit (principal, action, resource);')
    monkeypatch.setattr("tidegate.policy.engine.POLICY_ROUTES_MAX", 8)
    for number in range(50):
        engine.visible(Principal(f"user{number}"), "fs", "read")
    assert len(engine._routes) == 8


def test_an_answer_is_kept_for_the_arguments_that_it_was_given_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.policy.engine.ANSWERS_PER_ROUTE_MAX", 3)
    engine = engine_of('@id("few") permit (principal, action, resource) when { context.args.n < 5 };')

    def effects(numbers: list[object]) -> list[str]:
        return [engine.evaluate(ALICE, "fs", "read", {"n": number}).effect for number in numbers]

    mixed: list[object] = [1, 9, 2, True, 1, "1", 9, 4, 5, 1, 2, 4, 9]
    expected = ["allow" if type(number) is int and number < 5 else "deny" for number in mixed]
    assert effects(mixed) == expected == effects(mixed)
    (route,) = engine._routes.values()
    assert 0 < len(route.answers) <= 3


def test_no_answer_is_kept_where_the_time_matters() -> None:
    engine = engine_of('@id("morning") permit (principal, action, resource) when { context.time.hour < 12 };')
    day_us, hour_us = 20_000 * 86_400_000_000, 3_600_000_000
    hours = [9, 15, 9, 15]
    told = [engine.evaluate(ALICE, "fs", "read", {}, Facts(now_us=day_us + hour * hour_us)).effect for hour in hours]
    assert told == ["allow", "deny", "allow", "deny"]


def test_tags_and_attributes_of_a_server_and_an_action_count() -> None:
    entities = [
        {"uid": {"type": "Server", "id": "fs"}, "attrs": {"zone": "red"}, "parents": [], "tags": {"frozen": True}},
        {"uid": {"type": "Action", "id": "fs/read"}, "attrs": {"cost": 3}, "parents": []},
    ]
    everything = '@id("all") permit (principal, action, resource);'
    for condition in (
        'resource.hasTag("frozen") && resource.getTag("frozen")',
        'resource.zone == "red"',
        "action.cost == 3",
    ):
        engine = engine_of(
            f'{everything} @id("stop") forbid (principal, action, resource) when {{ {condition} }};',
            json.dumps(entities),
        )
        assert engine.evaluate(Principal("alice"), "fs", "read", {}).rules == ("stop",), condition


@pytest.mark.parametrize(
    ("more", "reason", "rules"),
    [
        ("", "tool-not-granted", ()),
        ('@id("late") forbid (principal, action, resource) when { context.args.n > 3 };', "tool-not-granted", ()),
        (
            """@id("some") permit (principal, action, resource) when { context.args.n > 3 };
            @id("never") forbid (principal, action, resource);""",
            "forbidden-by-rule",
            ("never",),
        ),
    ],
)
def test_a_hidden_tool_is_told_with_the_reason_that_holds_for_any_arguments(
    more: str, reason: str, rules: tuple[str, ...]
) -> None:
    engine = engine_of('@id("alice") permit (principal == User::"alice", action, resource);' + more)
    told = engine.hidden(EVE, "fs", "read")
    assert told is not None
    assert (told.effect, told.reason, told.rules) == ("deny", reason, rules)
    assert (engine.hidden(ALICE, "fs", "read") is None) == engine.visible(ALICE, "fs", "read") == ("never" not in more)
