"""Canaries and shadows at a real edge: who is decided for by what, what is recorded, and what a restart begins with."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.parts.edge import BUNDLE, Client, RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, scripted

from tidegate.chain import Chain
from tidegate.events import BundleActivated, BundleObserved, BundleRejected, CallRequested, QuarantineImposed, Role
from tidegate.log.port import Record
from tidegate.policy.release import ROLES, Chunks, pointer_key
from tidegate.policy.signing import Guard, Release, SigningKey, Stage
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge.kept import kept_release

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLACE: dict[str, Any] = {"region": "eu", "edge": {"id": "edge-eu", "labels": {"tier": "early"}}}


def files(rules: str = "", name: str = "edge-tests") -> dict[str, str]:
    """The tests' own bundle and further rules."""
    return {
        **BUNDLE,
        "manifest.json": f'{{"v": 1, "name": "{name}"}}',
        "policies/p.cedar": BUNDLE["policies/p.cedar"] + rules,
    }


NO_ECHO = '@id("no-echo") forbid (principal, action == Action::"up/echo", resource);\n'
STRICT = files(NO_ECHO)


class Ring:
    """An edge, and releases for it by number."""

    def __init__(self, running: RunningEdge) -> None:
        self.running = running
        self.number = 1

    @property
    def tenant(self) -> str:
        return self.running.settings.tenant

    def records(self, content: dict[str, str], role: Role = "ruling", number: int = 0, **more: Any) -> list[Record]:
        self.number = max(self.number + 1, number)
        return self.running.place.release(content, number or self.number, role=role, **more)

    async def release(self, content: dict[str, str], role: Role = "ruling", **more: Any) -> int:
        """Release and wait until it has its role; its number. Without content the role ends."""
        await self.running.log.append(self.records(content, role, **more))
        wanted = self.number
        await until(lambda: self.has(role, wanted))
        return wanted

    async def has(self, role: Role, number: int) -> bool:
        told = await self.told(BundleActivated)
        return any((event.role, event.number) == (role, number) for event in told)

    async def told(self, kind: type) -> list[Any]:
        return [event for event in await self.running.place.events("policy") if isinstance(event, kind)]

    async def refused(self, number: int, role: Role) -> BundleRejected:
        """The refusal, once it is told."""
        found: list[BundleRejected] = []

        async def there() -> bool:
            told = await self.told(BundleRejected)
            found[:] = [event for event in told if (event.number, event.role) == (number, role)]
            return bool(found)

        await until(there)
        return found[-1]

    def speaker(self, user: str = "alice@example.com", *groups: str) -> Speaker:
        return self.running.place.speaker(user=user, groups=("eng", *groups))

    async def decided(self, speaker: Speaker, **arguments: Any) -> CallRequested:
        """One call of echo, as it was recorded; the answer says the same."""
        nonce = f"nonce-{self.number}-{id(arguments)}-{len(await self.running.place.stored('calls'))}"
        answer = await speaker.call("up__echo", {"nonce": nonce, **arguments})
        [asked], _ = await self.running.place.calls(nonce)
        assert (asked.decision == "allow") == ("isError" not in answer.json.get("result", {"isError": True}))
        return asked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ring]:
    async with running_edge(tmp_path_factory.mktemp("rings"), {"up": {"url": up.url}}, **PLACE) as running:
        yield Ring(running)


@pytest_asyncio.fixture(loop_scope="module")
async def ring(edge: Ring) -> AsyncIterator[Ring]:
    """Without canary and shadow, under the bundle that allows echo."""
    for role in ("canary", "shadow"):
        await edge.release({}, role)
    await edge.release(files(name=f"before {edge.number}"))
    yield edge


async def test_a_canary_decides_for_its_groups_alone_and_says_so(ring: Ring) -> None:
    number = await ring.release(STRICT, "canary", stage=Stage(groups=("early",)))
    early, other = ring.speaker("eve@example.com", "early"), ring.speaker()
    by_canary, by_ruling = await ring.decided(early), await ring.decided(other)
    assert (by_canary.decision, by_canary.rules, by_canary.inputs.role) == ("deny", ("no-echo",), "canary")
    assert by_canary.inputs.release == number
    assert (by_ruling.decision, by_ruling.inputs.role) == ("allow", "ruling")
    assert by_canary.bundle != by_ruling.bundle
    listed = [one["name"] for one in (await early.ask(early.modern("tools/list"))).result["tools"]]
    assert "up__echo" not in listed, "lists and calls agree"
    assert "up__echo" in [one["name"] for one in (await other.ask(other.modern("tools/list"))).result["tools"]]


@pytest.mark.parametrize(
    ("stage", "rules"),
    [
        (Stage(regions=("eu",)), True),
        (Stage(regions=("us", "ap")), False),
        (Stage(labels={"tier": "early"}), True),
        (Stage(labels={"tier": "late"}), False),
        (Stage(percent=0), False),
        (None, True),
    ],
)
async def test_a_canary_rules_where_its_stage_says(ring: Ring, stage: Stage | None, rules: bool) -> None:
    await ring.release(STRICT, "canary", stage=stage)
    asked = await ring.decided(ring.speaker())
    assert asked.decision == ("deny" if rules else "allow")
    assert asked.inputs.role == ("canary" if rules else "ruling")


async def test_an_ended_canary_decides_nothing_and_does_not_come_back(ring: Ring) -> None:
    first = await ring.release(STRICT, "canary")
    assert (await ring.decided(ring.speaker())).decision == "deny"
    ended = await ring.release({}, "canary")
    assert (await ring.decided(ring.speaker())).inputs.role == "ruling"
    last = [event for event in await ring.told(BundleActivated) if event.role == "canary"][-1]
    assert (last.number, last.digest) == (ended, "")
    again = ring.running.place.release(files(NO_ECHO, "late"), first, role="canary")
    await ring.running.log.append(again)
    assert (await ring.refused(first, "canary")).reason.startswith("number-not-higher")
    assert (await ring.decided(ring.speaker())).inputs.role == "ruling"


async def test_a_promoted_canary_rules_everybody(ring: Ring) -> None:
    await ring.release(STRICT, "canary", stage=Stage(groups=("early",)))
    promoted = [*ring.records(STRICT), *ring.records({}, "canary")]
    await ring.running.log.append(promoted)
    await until(lambda: ring.has("canary", ring.number))
    asked = await ring.decided(ring.speaker())
    assert (asked.decision, asked.inputs.role, asked.inputs.release) == ("deny", "ruling", ring.number - 1)


@pytest.mark.parametrize("role", ["canary", "shadow", "ruling"])
async def test_a_broken_bundle_leaves_all_as_it_was_and_is_told_with_its_role(ring: Ring, role: Role) -> None:
    await ring.release(files('@id("more") forbid (principal, action == Action::"up/note", resource);\n'), role)
    before = await ring.decided(ring.speaker())
    number = ring.number + 1
    await ring.running.log.append(ring.records(files("permit (principal, action"), role))
    rejection = await ring.refused(number, role)
    assert rejection.reason.startswith("bad-bundle")
    after = await ring.decided(ring.speaker())
    assert (after.bundle, after.inputs.release, after.decision) == (before.bundle, before.inputs.release, "allow")


@pytest.mark.parametrize("role", ROLES)
async def test_unsigned_foreign_and_lower_releases_are_refused_in_every_role(ring: Ring, role: Role) -> None:
    held = await ring.release(files(name=f"held {role}"), role)
    place, tenant = ring.running.place, ring.tenant
    stranger = SigningKey(Ed25519PrivateKey.generate())
    strict = place.release(STRICT, held + 5, role=role)
    release = Release(tenant=tenant, ring="main", number=held + 5, digest=strict[-2].key.decode().split("|")[1],
                      previous="", role=role)  # fmt: skip
    moved = next(one for one in ROLES if one != role)
    forged = place.key.sign(release).replace(f'"number":{held + 5}'.encode(), f'"number":{held + 6}'.encode())
    key = pointer_key(tenant, "main", role)
    wrong = {
        "key-unknown": stranger.sign(release),
        "signature-invalid": forged,
        "tenant-foreign": place.key.sign(Release(**{**_fields(release), "tenant": "another"})),
        "ring-foreign": place.key.sign(Release(**{**_fields(release), "ring": "other"})),
        "role-foreign": place.key.sign(Release(**{**_fields(release), "role": moved})),
        "number-not-higher": place.key.sign(Release(**{**_fields(release), "number": held - 1})),
        "release-malformed": b"{not a release",
    }
    chunks = [record for record in strict if record.topic == "policy-state"][:-1]
    await ring.running.log.append([*chunks, *(Record("policy-state", key, value) for value in wrong.values())])

    async def all_told() -> bool:
        return wrong.keys() <= {event.reason.partition(":")[0] for event in await ring.told(BundleRejected)}

    await until(all_told)
    assert (await ring.decided(ring.speaker())).decision == "allow"
    rings = ring.running.edge.rings[tenant]
    assert rings.ruling is not None
    numbers = {
        "ruling": rings.ruling.number,
        "canary": rings.canary.number if rings.canary else 0,
        "shadow": rings.ruling.shadows[0].number if rings.ruling.shadows else 0,
    }
    assert numbers[role] == held


async def test_a_shadow_changes_no_answer_and_its_differences_are_recorded(ring: Ring) -> None:
    condition = 'context.args has path && context.args.path like "/tmp*"'
    rules = f'@id("no-tmp") forbid (principal, action, resource) when {{ {condition} }};'
    before = await ring.decided(ring.speaker(), path="/tmp/1")
    number = await ring.release(files(rules), "shadow")
    other, same = await ring.decided(ring.speaker(), path="/tmp/1"), await ring.decided(ring.speaker(), path="/srv/1")
    assert (other.decision, other.rules, other.bundle) == (before.decision, before.rules, before.bundle)
    [difference] = other.shadows
    assert (difference.decision, difference.rules, difference.release) == ("deny", ("no-tmp",), number)
    assert difference.bundle not in ("", other.bundle)
    assert (same.decision, same.shadows) == ("allow", ())
    await ring.release({}, "shadow")
    assert (await ring.decided(ring.speaker(), path="/tmp/1")).shadows == ()


async def test_rules_in_shadow_mode_are_evaluated_beside_their_own_bundle(ring: Ring) -> None:
    rules = '@id("trial") @mode("shadow") forbid (principal, action == Action::"up/echo", resource);\n'
    number = await ring.release(files(rules))
    asked = await ring.decided(ring.speaker())
    [difference] = asked.shadows
    assert asked.decision == "allow"
    assert (difference.bundle, difference.release, difference.rules) == (asked.bundle, number, ("trial",))
    assert difference.decision == "deny"
    await ring.release(STRICT, "shadow")
    asked = await ring.decided(ring.speaker())
    assert [one.rules for one in asked.shadows] == [("trial",), ("no-echo",)], "its own, then the other release's"


async def test_a_shadow_is_told_what_the_session_has_read_and_no_call_is_refused_where_nobody_can_tell(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = '@id("read") forbid (principal, action, resource) when { context.taint.contains("sensitive") };'
    await ring.release(files(rule), "shadow")
    edge, speaker = ring.running.edge, ring.speaker()
    clean = await ring.decided(speaker)
    assert clean.shadows == ()
    await edge.sessions.taint("acme", clean.session_id, {"sensitive"}, 60)
    monkeypatch.setattr(edge.sessions, "known_taint", lambda *_: None)  # another edge noted it
    [difference] = (asked := await ring.decided(speaker)).shadows
    assert (difference.decision, difference.rules) == ("deny", ("read",))
    assert (asked.decision, asked.inputs.taint) == ("allow", ()), "no rule that rules looks at it"
    failed = edge.counters.shadows_failed

    async def away(*_: Any) -> frozenset[str]:
        raise SessionsUnavailable("the session store at nowhere did not answer")

    monkeypatch.setattr(edge.sessions, "taint_of", away)
    unknown = await ring.decided(speaker)
    assert (unknown.decision, unknown.shadows) == ("allow", ())
    assert edge.counters.shadows_failed == failed + 1


async def test_a_guarded_canary_and_what_rules_beside_it_are_told(ring: Ring) -> None:
    await ring.decided(ring.speaker())
    number = await ring.release(STRICT, "canary", stage=Stage(groups=("early",)), guard=Guard(denials=0.1))
    marks: list[BundleObserved] = []

    async def marked() -> bool:
        marks[:] = [event for event in await ring.told(BundleObserved) if event.role == "ruling"]
        return bool(marks)

    await until(marked)  # what rules beside it, as it stood when the canary came
    early, other = ring.speaker("eve@example.com", "early"), ring.speaker()
    for speaker in (early, early, other, early):
        await ring.decided(speaker)

    async def sums() -> bool:
        told = await ring.told(BundleObserved)
        own = [event for event in told if (event.role, event.number) == ("canary", number)]
        ruling = [event for event in told if event.role == "ruling" and event.number == marks[-1].number]
        return bool(own) and (own[-1].decided, own[-1].denied, ruling[-1].decided - marks[-1].decided) == (3, 3, 1)

    await until(sums)
    own = [event for event in await ring.told(BundleObserved) if event.role == "canary"][-1]
    assert (own.callers, own.most_denied) == (1, (3,))


async def test_a_guarded_release_is_told_beside_what_ruled_before(ring: Ring) -> None:
    before = ring.number
    await ring.decided(ring.speaker())
    number = await ring.release(STRICT, guard=Guard(denials=0.1))

    async def compared() -> bool:
        baseline = [event for event in await ring.told(BundleObserved) if event.number == before]
        return [(event.role, event.decided, event.denied) for event in baseline] == [("ruling", 1, 0)]

    await until(compared)
    await ring.decided(ring.speaker())

    async def told() -> bool:
        return any((one.number, one.denied) == (number, 1) for one in await ring.told(BundleObserved))

    await until(told)


@pytest.mark.parametrize("role", ["ruling", "canary"])
async def test_a_tool_that_a_guarded_release_takes_from_people_counts_in_full_and_one_that_nobody_had_does_not(
    ring: Ring, role: Role
) -> None:
    stage = Stage(groups=("early",)) if role == "canary" else None
    await ring.release(STRICT, role, guard=Guard(denials=0.05, calls_min=10), stage=stage)
    speakers = [ring.speaker(f"{name}@example.com", "early") for name in ("eve", "mia", "zoe")]
    for speaker in speakers:
        calls = [speaker.calling(f"up__{name}", {}) for name in ("echo", "secret-tool") for _ in range(6)]
        await speaker.say(*calls)
    rings = ring.running.edge.rings[ring.tenant]
    chosen = rings.canary if role == "canary" else rings.ruling
    assert chosen is not None
    sums = chosen.tally.sums()
    assert (sums.decided, sums.denied) == (21, 21), "six of what was there before, one of what never was"
    assert sums.most_denied == (7, 7)


async def test_only_clients_whose_rules_change_are_told_of_their_lists(ring: Ring) -> None:
    early, other = ring.speaker("eve@example.com", "early"), ring.speaker()
    async with listening(early) as hears, listening(other) as silent:
        await ring.release(STRICT, "canary", stage=Stage(groups=("early",)))
        assert (await hears.event()) is not None
        await ring.release(files(name="for all"))
        event = await silent.event()
        assert event is not None
        assert event.json["method"] == "notifications/tools/list_changed"
        await ring.release({}, "canary")
        second = await hears.event()
        assert second is not None, "the canary has ended: the ruling bundle's lists"
        with pytest.raises(TimeoutError):
            await silent.event(0.3)


@contextlib.asynccontextmanager
async def listening(speaker: Speaker) -> AsyncIterator[Client]:
    """A client that subscribed to changes of the tools' list."""
    client = await speaker.connect()
    wanted = {"notifications": {"toolsListChanged": True}}
    client.write(speaker.modern("subscriptions/listen", wanted))
    assert (await client.stream()).status == 200
    assert (await client.event()) is not None
    try:
        yield client
    finally:
        client.close()


def _fields(release: Release) -> dict[str, Any]:
    return {name: getattr(release, name) for name in release.__struct_fields__}


@pytest.mark.parametrize("ended", [(), ("canary", "shadow")])
async def test_a_restarted_edge_decides_by_what_it_kept_with_the_log_away(
    up: Scripted, tmp_path: Path, ended: Sequence[Role]
) -> None:
    servers = {"up": {"url": up.url}}
    async with running_edge(tmp_path, servers, **PLACE) as running:
        ring = Ring(running)
        canary = await ring.release(STRICT, "canary", stage=Stage(groups=("early",)))
        shadow = await ring.release(files('@id("no-all") forbid (principal, action, resource);'), "shadow")
        for role in ended:
            await ring.release({}, role)

        def is_kept(role: Role) -> bool:
            kept = kept_release(running.settings.data_dir / "releases", ring.tenant, role)
            return kept is not None and bool(kept[1]) == (role not in ended)

        await until(lambda: all(is_kept(role) for role in ROLES))
    for path in tmp_path.rglob("log.db*"):
        path.unlink()
    async with running_edge(tmp_path, servers, bundle=None, **PLACE) as running:
        ring = Ring(running)
        early, other = await ring.decided(ring.speaker("e", "early")), await ring.decided(ring.speaker())
        assert (other.inputs.role, other.inputs.release, other.decision) == ("ruling", 1, "allow")
        if ended:
            assert (early.inputs.role, other.shadows) == ("ruling", ())
        else:
            assert (early.inputs.role, early.inputs.release, early.decision) == ("canary", canary, "deny")
            assert [(one.release, one.rules) for one in other.shadows] == [(shadow, ("no-all",))]
        for role, number in (("ruling", 1), ("canary", canary), ("shadow", shadow)):
            await running.log.append(running.place.release(files(NO_ECHO, "older"), number, role=role))
            assert (await ring.refused(number, role)).reason.startswith("number-not-higher")
        again = await ring.decided(ring.speaker())
        assert (again.bundle, again.inputs.release) == (other.bundle, 1)


async def test_quarantines_and_calls_go_on_while_a_large_bundle_is_made_ready(ring: Ring) -> None:
    many = "".join(
        f'@id("r{number}") permit (principal in Group::"g{number}", action == Action::"up/t{number}", resource);\n'
        for number in range(1_500)
    )
    log, before = ring.running.log, ring.number
    quarantine = QuarantineImposed(
        **ring.running.edge.place.stamp(ring.tenant),
        quarantine_id="q-large",
        scope="agent",
        value="stopped",
        reason="meanwhile",
        actor="tests",
    )
    sealed = Chain("tests-quarantine").seal(quarantine)
    await log.append(
        [*ring.records(files(many)), Record("control-state", f"{ring.tenant}|q-large".encode(), sealed.value)]
    )
    stopped = ring.running.place.speaker(agent="stopped")

    async def is_stopped() -> bool:
        answer = await stopped.call("up__echo", {})
        return bool(answer.result.get("isError"))

    await until(is_stopped)
    ruling = ring.running.edge.rings[ring.tenant].ruling
    assert ruling is not None
    assert ruling.number == before, "the quarantine did not wait for the bundle that came before it"
    await until(lambda: ring.has("ruling", ring.number))
    assert (await ring.decided(ring.speaker())).inputs.release == ring.number
    await log.append([Record("control-state", f"{ring.tenant}|q-large".encode(), None)])


async def test_a_new_edge_finds_the_bytes_of_a_release_among_those_of_very_many_bundles(
    up: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = {"up": {"url": up.url}}
    async with running_edge(tmp_path, servers, **PLACE) as running:
        for number in range(2, 12):
            await running.publish(files(name=f"bundle {number} {'x' * 2_000}"), number)
        chunks = [one for one in running.place.release(files(name="last"), 12) if one.topic == "policy-state"]
        others = [one for n in range(9) for one in running.place.release(files(name=f"later {n}"), 1)[1:-1]]
        await running.log.append([*chunks[:-1], *others, chunks[-1]])
        await until(lambda: running.edge.rulings["acme"].number == 12)
    for path in (tmp_path / running.settings.data / "releases").glob("*"):
        path.unlink()
    monkeypatch.setattr(Chunks.__init__, "__defaults__", (2_000,))
    async with running_edge(tmp_path, servers, bundle=None, **PLACE) as running:
        await until(lambda: (ruling := running.edge.rulings.get("acme")) is not None and ruling.number == 12)
