"""Who is decided for by a canary; what releases count, and when that is told; bundles made ready in turns."""

import gc
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.claims import Principal
from tidegate.errors import BundleFault
from tidegate.ids import SubjectId
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import NO_FACTS
from tidegate.policy.signing import Release, Stage
from tidegate.policy.staging import fits, is_here, part_of
from tidegate.policy.verdict import Verdict
from tidegate_edge.catalog import Catalog
from tidegate_edge.kept import keep, kept_release
from tidegate_edge.observing import CLOSELY_FOR_US, RARELY_US, RAREST_US, Watched, is_due
from tidegate_edge.preparing import TURN_S, prepared
from tidegate_edge.retiring import Large, let_go
from tidegate_edge.rings import Rings
from tidegate_edge.ruling import Ruling
from tidegate_edge.tallies import Shadow, Sums, Tally

NOW = 1_700_000_000_000_000
ALLOWED = Verdict("allow", "granted", ("all",))
texts = st.text(max_size=30)


def bundle(rules: str) -> Bundle:
    return bundle_of({"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": rules.encode()})


def ruling(name: str, role: Any = "ruling") -> Ruling:
    made = bundle(f'@id("{name}") permit (principal, action, resource);')
    scanner = Scanner(load_inspection(b""))
    return Ruling(Engine.build(made, (), {}), scanner, Catalog(), number=1, digest=made.digest, role=role)


OLD, NEW, NEWER = ruling("old"), ruling("new", "canary"), ruling("newer", "canary")


def principal(subject: str = "s", agent: str = "bot", groups: tuple[str, ...] = ()) -> Principal:
    return Principal(
        tenant="t", issuer="i", subject=subject, subject_id=SubjectId(subject), user=subject, login="", agent=agent,
        agent_source="", actors=(), groups=groups, scopes=(), token_id="", sid="", issued_us=0, expires_us=0,
        key=f"{subject}|{agent}|{groups}",
    )  # fmt: skip


# stages


@given(subject=texts, agent=texts, percents=st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_who_is_in_a_smaller_share_is_in_every_larger_one(subject: str, agent: str, percents: list[float]) -> None:
    who = principal(subject, agent)
    inside = [fits(Stage(percent=percent), "d", who) for percent in sorted(percents)]
    assert inside == sorted(inside)
    assert fits(Stage(percent=100), "d", who)
    assert not fits(Stage(percent=0), "d", who)


@pytest.mark.parametrize("percent", [1, 10, 50, 90])
def test_a_share_of_principals_is_about_that_share_and_another_one_for_another_bundle(percent: float) -> None:
    people = [principal(f"user-{number}", f"agent-{number % 7}") for number in range(4_000)]
    chosen = {digest: {who.key for who in people if fits(Stage(percent=percent), digest, who)} for digest in "ab"}
    for keys in chosen.values():
        assert abs(len(keys) / len(people) * 100 - percent) < 4 * (percent * (100 - percent) / len(people)) ** 0.5
    assert chosen["a"] != chosen["b"]


@given(digest=texts, tenant=texts, subject=texts, agent=texts)
def test_a_part_is_from_nothing_to_below_a_hundred_and_every_name_counts(
    digest: str, tenant: str, subject: str, agent: str
) -> None:
    assert 0 <= part_of(digest, tenant, subject, agent) < 100
    assert part_of(digest, tenant, subject, agent) != part_of(digest, tenant, subject + "x", agent)
    assert part_of(digest, tenant, subject, agent) != part_of(digest, tenant, subject, agent + "x")


def test_a_stage_of_groups_takes_whoever_is_in_one_of_them() -> None:
    stage = Stage(groups=("ops", "eng"))
    assert fits(stage, "d", principal(groups=("eng", "all")))
    assert not fits(stage, "d", principal(groups=("sales",)))
    assert not fits(stage, "d", principal())
    assert not fits(Stage(groups=("eng",), percent=0), "d", principal(groups=("eng",))), "everything named must fit"


def test_a_stage_of_regions_and_labels_leaves_other_edges_out() -> None:
    labels = {"tier": "canary", "zone": "a"}
    assert is_here(None, "eu", {})
    assert is_here(Stage(regions=("eu", "us")), "us", {})
    assert not is_here(Stage(regions=("eu",)), "us", {})
    assert is_here(Stage(labels={"tier": "canary"}), "us", labels)
    assert not is_here(Stage(labels={"tier": "canary", "zone": "b"}), "us", labels)
    assert not is_here(Stage(regions=("eu",), labels={"tier": "canary"}), "us", labels)


# rings


def test_a_canary_decides_for_its_stage_alone_and_without_a_ruling_release_for_nobody() -> None:
    rings = Rings(OLD, NEW, Stage(groups=("eng",)))
    assert rings.of(principal("a", groups=("eng",))) is NEW
    assert rings.of(principal("b", groups=("ops",))) is OLD
    assert rings.of(principal("a", groups=("eng",))) is NEW, "kept"
    assert Rings(None, NEW).of(principal()) is None
    assert Rings(OLD).of(principal()) is OLD


def test_those_are_told_for_whom_another_bundle_decides_than_before() -> None:
    eng, ops = principal("a", groups=("eng",)), principal("b", groups=("ops",))
    before, after = Rings(OLD), Rings(OLD, NEW, Stage(groups=("eng",)))
    assert not before.decides_as(after, eng)
    assert before.decides_as(after, ops)
    promoted = Rings(NEW)
    assert after.decides_as(promoted, eng), "for the canary's own nothing changes when it is promoted"
    assert not after.decides_as(promoted, ops)
    assert after.digests == {OLD.digest, NEW.digest}


# tallies and shadows


def test_a_tally_counts_what_a_guard_looks_at() -> None:
    tally = Tally(NOW, slow_us=1_000)
    tally.add(ALLOWED, 10)
    tally.add(Verdict("deny", "tool-not-granted"), 1_001)
    tally.add(Verdict("deny", "evaluation-error"), 1)
    tally.add(Verdict("deny", "argument-not-representable"), 1)
    tally.add(Verdict("ask", "approval-required"), 1)
    assert tally.sums() == Sums(decided=5, denied=3, asked=1, errors=1, slow=1)


def test_a_shadow_says_what_it_would_have_decided_only_where_that_differs() -> None:
    made = bundle(
        '@id("all") permit (principal, action, resource);'
        '@id("no-etc") forbid (principal, action, resource)'
        ' when { context.args has path && context.args.path like "/etc*" };'
    )
    engine = Engine.build(made, [ToolFacts("up", "echo")], {"up": ()})
    shadow = Shadow(engine, made.digest, 4, Tally(NOW))
    assert shadow.compare(ALLOWED, principal(), "up", "echo", {"path": "/srv"}, NO_FACTS) is None
    found = shadow.compare(ALLOWED, principal(), "up", "echo", {"path": "/etc/x"}, NO_FACTS)
    assert found is not None
    assert (found.bundle, found.release, found.decision, found.reason, found.rules) == (
        made.digest,
        4,
        "deny",
        "forbidden-by-rule",
        ("no-etc",),
    )
    assert msgspec.structs.replace(shadow.tally.sums(), slow=0) == Sums(decided=2, denied=1, differed=1)


# observations


def watched(closely: bool, decided: int = 1) -> Watched:
    tally = Tally(NOW)
    tally.decided = decided
    return Watched(Release(tenant="t", ring="main", number=1, digest="d", previous=""), tally, closely)


def test_sums_are_told_when_they_changed_and_never_before_anything_was_decided() -> None:
    one = watched(closely=True)
    assert is_due(one, Sums(), 0, NOW + 1)
    assert not is_due(one, one.tally.sums(), NOW, NOW + 1)
    assert not is_due(watched(closely=True, decided=0), Sums(), 0, NOW + 1)


def test_what_a_guard_waits_for_is_told_at_each_look_and_after_ten_minutes_at_each_fifth() -> None:
    one, old = watched(closely=True), Sums()
    assert is_due(one, old, NOW, NOW + 1)
    late = NOW + CLOSELY_FOR_US
    assert not is_due(one, old, late, late + RARELY_US - 1)
    assert is_due(one, old, late, late + RARELY_US)


def test_what_nobody_waits_for_is_told_ever_more_rarely() -> None:
    one, old = watched(closely=False), Sums()
    assert is_due(one, old, NOW, NOW + 2)
    for age_us in (10_000_000, 1_000_000_000, 10**12):
        at_us, every_us = NOW + age_us, min(age_us // 2, RAREST_US)
        assert not is_due(one, old, at_us - every_us + 1, at_us)
        assert is_due(one, old, at_us - every_us, at_us)


# kept on disk, and made ready


def test_each_role_is_kept_in_a_file_of_its_own_and_the_ruling_one_where_it_always_was(tmp_path: Path) -> None:
    assert kept_release(tmp_path / "none", "acme", "ruling") is None
    for role in ("ruling", "canary", "shadow"):
        keep(tmp_path, "acme", role, role.encode(), b"canonical")
    keep(tmp_path, "acme", "canary", b"ended", b"")
    assert kept_release(tmp_path, "acme", "ruling") == (b"ruling", b"canonical")
    assert kept_release(tmp_path, "acme", "canary") == (b"ended", b"")
    assert kept_release(tmp_path, "acme", "shadow") == (b"shadow", b"canonical")
    assert kept_release(tmp_path, "other", "shadow") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "61636d65.canary.json",
        "61636d65.json",
        "61636d65.shadow.json",
    ]
    (tmp_path / "61636d65.json").write_bytes(b"{torn")
    assert kept_release(tmp_path, "acme", "ruling") is None


def test_threads_take_turns_sooner_while_a_bundle_is_made_ready_and_as_before_afterwards() -> None:
    before, during = sys.getswitchinterval(), []
    assert gc.isenabled()

    class Noting(dict[str, bytes]):
        def get(self, *given: Any) -> Any:
            during.append(sys.getswitchinterval())
            assert not gc.isenabled()
            return super().get(*given)

    made = bundle('@id("a") permit (principal, action, resource);')
    ready = prepared(replace(made, files=Noting(made.files)))
    assert ready.engine.digest == made.digest
    assert during
    assert max(during) <= TURN_S * 1.01
    with pytest.raises(BundleFault):
        prepared(bundle("permit (principal"))
    assert (sys.getswitchinterval(), gc.isenabled()) == (before, True)


def test_what_is_let_go_of_is_gone_but_for_what_others_hold() -> None:
    made = bundle("".join(f'@id("r{number}") permit (principal, action, resource);' for number in range(20)))
    engine = Engine.build(made, [ToolFacts("up", "echo")], {"up": ()})
    other = engine.with_tools([ToolFacts("up", "note")], {"up": ()})
    assert engine.standing(principal(), "up", "echo") is not None
    gone, shared, rule = weakref.ref(engine), weakref.ref(engine.rules[0]), weakref.ref(engine.rules[-1])
    held: list[Large] = [engine]
    del engine
    let_go(held)
    assert (held, gone()) == ([], None)
    assert shared() is other.rules[0]
    verdict = other.standing(principal(), "up", "note")
    assert verdict is not None
    assert verdict.effect == "allow"
    held = [other]
    del other
    let_go(held)
    assert (shared(), rule()) == (None, None)
