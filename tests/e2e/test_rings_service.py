"""Canaries, shadows, promotion and guards at the policy service: by its API, with edges that say what they counted."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.policy_service import Edge, Running, digest_of, running, settings_for, until, variant, write

from tidegate.events import Role
from tidegate.policy.release import pointer_key
from tidegate.policy.signing import Guard, Stage, open_release, trusted_keys

ONE, TWO, THREE = (variant(name) for name in ("one", "two", "three"))
pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "role=canary&percent=10"
DENIALS = "guard_denials=0.05&guard_calls=50"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settled(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Where one release rules and none is made: for what is refused."""
    async with running(settings_for(tmp_path_factory.mktemp("settled"))) as served:
        await publish(served, ONE)
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path)) as served:
        await publish(served, ONE)
        yield served


async def publish(service: Running, files: dict[str, str], query: str = "") -> dict[str, Any]:
    status, release = await service.ask("POST", f"/api/v1/bundles?{query}", {"files": files})
    assert status == 201, release
    return dict(release)


async def status_of(service: Running, ring: str = "main") -> dict[str, Any]:
    status, found = await service.ask("GET", f"/api/v1/status?ring={ring}")
    assert status == 200, found
    return dict(found["rings"][0])


async def pointer(service: Running, role: Role) -> Any:
    """The release that the log holds for a role, verified as an edge would."""
    found = None
    subscription = await service.log.follow(("policy-state",))
    while not subscription.caught_up:
        for record in await subscription.poll(100, 0.1):
            if record.key == pointer_key("acme", "main", role):
                assert record.value is not None
                found = open_release(record.value, trusted_keys([service.opened.public_key]), "acme")
    await subscription.close()
    return found


async def releases(service: Running) -> list[dict[str, Any]]:
    return list((await service.ask("GET", "/api/v1/releases"))[1])


async def taken_back(service: Running, count: int) -> bool:
    return sum(release["actor"] == "guard" for release in await releases(service)) == count


async def stays(service: Running) -> bool:
    """The guardian looks, and takes nothing back."""
    await service.opened.service.guardian.look()
    return await taken_back(service, 0)


async def test_a_canary_is_released_beside_what_rules_with_its_stage_and_guard_signed(service: Running) -> None:
    query = f"{CANARY}&region=eu&region=us&group=eng&edge_label=site%3Dlab&{DENIALS}&guard_slow=0.01&guard_slow_ms=2.5"
    release = await publish(service, TWO, query)
    assert (release["number"], release["role"], release["state"], release["current"]) == (2, "canary", "canary", False)
    signed = await pointer(service, "canary")
    assert (signed.number, signed.digest, signed.role) == (2, digest_of(TWO), "canary")
    assert signed.stage == Stage(percent=10, regions=("eu", "us"), groups=("eng",), labels={"site": "lab"})
    assert signed.guard == Guard(denials=0.05, slow=0.01, slow_us=2_500, calls_min=50)
    assert (await pointer(service, "ruling")).number == 1, "what rules is not touched"
    found = await status_of(service)
    assert found["ruling"]["release"]["digest"] == digest_of(ONE)
    assert found["canary"]["release"]["stage"]["labels"] == {"site": "lab"}
    assert found["canary"]["watching"] == "waiting"
    _, bundles = await service.ask("GET", "/api/v1/bundles")
    assert {(view["digest"], view["state"]) for view in bundles} == {
        (digest_of(ONE), "ruling"),
        (digest_of(TWO), "canary"),
    }


async def test_the_same_canary_is_not_released_twice_but_a_wider_one_is(service: Running) -> None:
    await publish(service, TWO, CANARY)
    status, again = await service.ask("POST", f"/api/v1/bundles?{CANARY}", {"files": TWO})
    assert (status, again["created"], again["number"]) == (200, False, 2)
    wider = await publish(service, TWO, "role=canary&percent=50")
    assert (wider["number"], wider["stage"]["percent"]) == (3, 50)
    assert [(release["number"], release["state"]) for release in await releases(service)] == [
        (3, "canary"),
        (2, "retired"),
        (1, "ruling"),
    ]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("percent=10", 422, "stage-without-canary"),
        ("role=shadow&group=eng", 422, "stage-without-canary"),
        ("role=shadow&guard_errors=0", 422, "guard-without-ruling"),
        ("role=canary&guard_calls=10", 422, "guard-empty"),
        ("role=canary&percent=0", 422, "request-malformed"),
        ("role=canary&percent=101", 422, "request-malformed"),
        ("role=canary&percent=nan", 422, "request-malformed"),
        ("role=canary&edge_label=site", 422, "request-malformed"),
        ("role=canary&edge_label=a%3Db&edge_label=a%3Dc", 422, "request-malformed"),
        ("role=canary&guard_denials=5", 422, "request-malformed"),
        ("role=canary&guard_slow=0.01&guard_slow_ms=1e-9", 422, "request-malformed"),
        ("role=canary&guard_slow=0.01&guard_slow_ms=0.0009", 422, "request-malformed"),
        ("role=emperor", 422, "request-malformed"),
        ("role=canary&percnt=10", 422, "request-malformed"),
        ("role=canary&ring=other", 409, "nothing-rules"),
        ("role=canary&" + "&".join(f"group={'x' * 150}{number}" for number in range(40)), 422, "stage-too-large"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_is_released(
    settled: Running, query: str, status: int, code: str
) -> None:
    found, problem = await settled.ask("POST", f"/api/v1/bundles?{query}", {"files": TWO})
    assert (found, problem["code"]) == (status, code)
    assert len(await releases(settled)) == 1


async def test_what_rules_already_is_no_canary(settled: Running) -> None:
    status, problem = await settled.ask("POST", f"/api/v1/bundles?{CANARY}", {"files": ONE})
    assert (status, problem["code"]) == (409, "already-current")


async def test_a_promoted_canary_rules_and_is_no_canary_any_more(service: Running) -> None:
    await publish(service, TWO, CANARY)
    wanted = {"from": "canary", "guard": {"errors": 0, "watch": 60}}
    status, release = await service.ask("POST", "/api/v1/promote", wanted)
    assert (status, release["number"], release["cause"], release["state"]) == (201, 3, "promoted", "ruling")
    assert release["guard"]["errors"] == 0
    ended = await pointer(service, "canary")
    assert (ended.number, ended.digest) == (4, "")
    assert (await pointer(service, "ruling")).digest == digest_of(TWO)
    found = await status_of(service)
    assert (found["canary"], found["ended"][0]["reason"]) == (None, "Its bundle rules the ring.")
    status, problem = await service.ask("POST", "/api/v1/promote", {})
    assert (status, problem["code"]) == (404, "nothing-to-promote")


async def test_what_rules_one_ring_is_promoted_to_another(service: Running) -> None:
    status, release = await service.ask("POST", "/api/v1/promote", {"ring": "prod", "from": "main"})
    assert (status, release["ring"], release["number"], release["digest"]) == (201, "prod", 1, digest_of(ONE))
    status, problem = await service.ask("POST", "/api/v1/promote", {"ring": "prod", "from": "main"})
    assert (status, problem["code"]) == (409, "already-current")
    status, problem = await service.ask("POST", "/api/v1/promote", {"ring": "prod", "from": "staging"})
    assert (status, problem["code"]) == (404, "nothing-to-promote")


@pytest.mark.parametrize("role", ["canary", "shadow"])
async def test_a_canary_or_shadow_is_withdrawn_by_a_release_of_nothing(service: Running, role: Role) -> None:
    await publish(service, TWO, f"role={role}")
    status, release = await service.ask("POST", "/api/v1/rollback", {"role": role})
    assert (status, release["number"], release["cause"], release["state"]) == (201, 3, "withdrawn", "withdrawal")
    assert (await pointer(service, role)).digest == ""
    assert (await status_of(service))[role] is None
    status, problem = await service.ask("POST", "/api/v1/rollback", {"role": role})
    assert (status, problem["code"]) == (404, "nothing-to-withdraw")
    _, bundles = await service.ask("GET", "/api/v1/bundles")
    assert {view["digest"]: view["state"] for view in bundles}[digest_of(TWO)] == "retired"


async def test_nobody_rolls_back_to_what_never_ruled(service: Running) -> None:
    await publish(service, TWO, CANARY)
    for to in (2, digest_of(TWO)):
        status, problem = await service.ask("POST", "/api/v1/rollback", {"to": to})
        assert (status, problem["code"]) == (409, "never-ruled")
    for wanted in ({}, {"to": 1, "role": "canary"}, {"role": "ruling"}):
        status, problem = await service.ask("POST", "/api/v1/rollback", wanted)
        assert (status, problem["code"]) == (422, "request-malformed")


async def test_a_bad_canary_is_taken_back_by_itself(service: Running) -> None:
    ruling = Edge(service.log, "e1")
    await ruling.activate(1, digest_of(ONE))
    await publish(service, TWO, f"{CANARY}&{DENIALS}")
    await ruling.activate(2, digest_of(TWO), "canary")
    await ruling.observe(1, digest_of(ONE), decided=400, denied=4)
    await ruling.observe(2, digest_of(TWO), "canary", decided=60, denied=55)
    await until(lambda: taken_back(service, 1))
    withdrawn = (await releases(service))[0]
    assert (withdrawn["role"], withdrawn["digest"], withdrawn["cause"]) == ("canary", "", "withdrawn")
    assert withdrawn["reason"].startswith("55 of 60 calls (91.7%) were denied, 4 of 400 (1.0%)")
    assert (await pointer(service, "canary")).digest == ""
    assert (await pointer(service, "ruling")).number == 1
    async with service.client.get(f"{service.base}/metrics") as response:
        assert "tidegate_policy_taken_back_total 1.0" in await response.text()


async def test_two_callers_cannot_vote_a_release_away_and_a_third_can(service: Running) -> None:
    edges = [Edge(service.log, f"e{number}") for number in range(2)]
    await publish(service, TWO, f"{DENIALS}&guard_errors=0&watch=600")
    for edge in edges:
        await edge.activate(1, digest_of(ONE))
        await edge.observe(1, digest_of(ONE), decided=10_000, denied=100, callers=50)
        await edge.activate(2, digest_of(TWO))
        flood: dict[str, Any] = {"most_denied": (60, 60), "errors": 2, "most_errors": (1, 1), "callers": 30}
        await edge.observe(2, digest_of(TWO), decided=620, denied=130, **flood)
    await until(lambda: _ruled(service, 1240))
    found = (await status_of(service))["ruling"]
    assert (found["watching"], found["counts"]["denied"], found["counts"]["callers"]) == ("watching", 260, 30)
    told = "260 of 1240 calls (21.0%) were denied, 200 of 20000 (1.0%) by the release that it is compared with"
    assert found["awaited"] == {
        "reason": f"{told}; the guard allows 5.0% more",
        "callers": 3,
        "callers_needed": 3,
    }
    assert await stays(service)
    await edges[0].observe(2, digest_of(TWO), decided=780, denied=290, **flood)
    await until(lambda: taken_back(service, 1))
    assert (await releases(service))[0]["reason"].startswith("420 of 1400 calls (30.0%) were denied")


async def test_a_good_canary_stays_and_so_does_one_with_too_few_calls(service: Running) -> None:
    edge = Edge(service.log, "e1")
    await publish(service, TWO, f"{CANARY}&{DENIALS}&guard_errors=0")
    await edge.activate(2, digest_of(TWO), "canary")
    await edge.observe(1, digest_of(ONE), decided=1000, denied=100)
    await edge.observe(2, digest_of(TWO), "canary", decided=49, denied=49, errors=49)

    async def counted(decided: int) -> bool:
        found = (await status_of(service))["canary"]
        return bool(found["counts"]["decided"] == decided)

    await until(lambda: counted(49))
    assert (await status_of(service))["canary"]["watching"] == "waiting"
    assert await stays(service)
    fresh = Edge(service.log, "e2")
    await publish(service, THREE, f"{CANARY}&{DENIALS}&guard_errors=0&replace=true")
    await fresh.activate(3, digest_of(THREE), "canary")
    await fresh.observe(3, digest_of(THREE), "canary", decided=500, denied=55)
    await until(lambda: counted(500))
    found = (await status_of(service))["canary"]
    assert (found["watching"], found["reason"]) == ("watching", "")
    assert await stays(service)


async def test_a_canary_is_compared_with_what_was_decided_beside_it_not_before(service: Running) -> None:
    """Everybody is denied more since an hour: the canary is no worse than what rules beside it."""
    edge = Edge(service.log, "e1")
    await edge.activate(1, digest_of(ONE))
    since_us = edge.since_us
    await publish(service, TWO, f"{CANARY}&{DENIALS}")
    await edge.activate(2, digest_of(TWO), "canary")
    await edge.observe(1, digest_of(ONE), decided=10_000, denied=0, since_us=since_us)  # before the canary came
    await edge.observe(1, digest_of(ONE), decided=10_400, denied=160, since_us=since_us)
    await edge.observe(2, digest_of(TWO), "canary", decided=200, denied=80)

    async def compared() -> bool:
        found = (await status_of(service))["canary"]
        return bool(found["counts"]["decided"] == 200 and found["compared_with"]["decided"] == 400)

    await until(compared)
    assert (await status_of(service))["canary"]["watching"] == "watching"
    assert await stays(service)


async def test_a_guarded_release_for_everybody_is_rolled_back_to_what_ruled(service: Running) -> None:
    edges = [Edge(service.log, f"e{number}") for number in range(2)]
    await publish(service, TWO, "guard_errors=0&guard_calls=20&watch=60")
    for edge in edges:
        await edge.observe(1, digest_of(ONE), decided=500, denied=5)
        await edge.activate(2, digest_of(TWO))
        await edge.observe(2, digest_of(TWO), decided=10, denied=1, errors=1)
    await until(lambda: taken_back(service, 1))
    rolled = (await releases(service))[0]
    assert (rolled["role"], rolled["cause"], rolled["digest"], rolled["number"]) == (
        "ruling",
        "rolled-back",
        digest_of(ONE),
        3,
    )
    assert "2 of 20 calls (10.0%) met a rule that cannot be evaluated" in rolled["reason"]
    assert rolled["guard"] is None
    await until(lambda: service.onlooker.activations[-1].release.number == 3)


async def test_after_its_watch_a_release_is_left_alone(service: Running) -> None:
    edge = Edge(service.log, "e1")
    release = await publish(service, TWO, "guard_errors=0&guard_calls=20&watch=1")
    await edge.observe(1, digest_of(ONE), decided=500)
    late_us = release["released_us"] + 60_000_000
    await edge.observe(2, digest_of(TWO), decided=100, denied=100, errors=100, at_us=late_us)
    await edge.activate(2, digest_of(TWO))
    await until(lambda: "e1" in service.opened.service.state.edges)
    assert (await status_of(service))["ruling"]["counts"]["decided"] == 0, "what came after it does not count"
    assert await stays(service)


async def test_the_first_release_has_nothing_to_return_to(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as service:
        await publish(service, ONE, "guard_errors=0&guard_calls=20")
        edge = Edge(service.log, "e1")
        await edge.observe(1, digest_of(ONE), decided=100, errors=100)
        await edge.activate(1, digest_of(ONE))
        await until(lambda: "e1" in service.opened.service.state.edges)
        assert (await status_of(service))["ruling"]["watching"] == "nothing-before"
        assert await stays(service)


async def test_a_restarted_service_goes_on_watching(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as service:
        await publish(service, ONE)
        await publish(service, TWO, f"{CANARY}&{DENIALS}")
        edge = Edge(service.log, "e1")
        await edge.activate(2, digest_of(TWO), "canary")
        await edge.observe(1, digest_of(ONE), decided=300)
        await edge.observe(2, digest_of(TWO), "canary", decided=30, denied=30)
        await until(lambda: _total(service, 2) == 30)
    async with running(settings_for(tmp_path)) as service:
        found = (await status_of(service))["canary"]
        assert (found["counts"]["decided"], found["watching"]) == (30, "waiting")
        again = Edge(service.log, "e1")  # the edge was started anew, too: it counts from nothing
        await again.activate(2, digest_of(TWO), "canary")
        await again.observe(2, digest_of(TWO), "canary", decided=30, denied=30)
        await until(lambda: taken_back(service, 1))
        assert "60 of 60 calls" in (await releases(service))[0]["reason"]


async def test_what_edges_said_while_the_service_was_away_counts(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as service:
        await publish(service, ONE)
        await publish(service, TWO, "guard_denials=0.1&guard_calls=50&watch=60")
        edge = Edge(service.log, "e1")
        await edge.observe(1, digest_of(ONE), decided=300)
        await edge.observe(2, digest_of(TWO), decided=49, denied=49)
    async with running(settings_for(tmp_path)) as service:
        await Edge(service.log, "e2").observe(2, digest_of(TWO), decided=10, denied=10)
        await until(lambda: taken_back(service, 1))
        assert (await status_of(service))["ruling"]["release"]["digest"] == digest_of(ONE)


def _ruled(service: Running, decided: int) -> bool:
    return service.opened.service.state.observations.total("main", "ruling", 2).decided == decided


def _total(service: Running, number: int) -> int:
    return service.opened.service.state.observations.total("main", "canary", number).decided


async def test_the_status_tells_which_edges_run_refuse_or_say_nothing(service: Running) -> None:
    await publish(service, TWO, CANARY)
    good, bad, quiet = (Edge(service.log, name) for name in ("good", "refusing", "quiet"))
    for edge in (good, bad, quiet):
        await edge.activate(1, digest_of(ONE))
    await good.activate(2, digest_of(TWO), "canary")
    await bad.reject(2, digest_of(TWO), "key-unknown: nobody here trusts the key", "canary")
    await until(lambda: len(service.opened.service.state.edges) == 3)
    await until(lambda: service.opened.service.state.edges["refusing"].role("canary").rejected is not None)
    found = await status_of(service)
    assert {edge["edge"]: edge["state"] for edge in found["ruling"]["edges"]} == dict.fromkeys(
        ("good", "refusing", "quiet"), "current"
    )
    assert {edge["edge"]: edge["state"] for edge in found["canary"]["edges"]} == {
        "good": "current",
        "refusing": "refused",
        "quiet": "behind",
    }
    _, edges = await service.ask("GET", "/api/v1/edges")
    shown = {edge["edge"]: edge for edge in edges}
    assert shown["refusing"]["beside"][0]["rejected"]["reason"].startswith("key-unknown")
    assert (shown["refusing"]["behind"], shown["refusing"]["rejected"]) == (False, None)


async def test_a_restart_in_local_mode_promotes_no_canary(tmp_path: Path) -> None:
    write(tmp_path / "policy", ONE)
    async with running(settings_for(tmp_path, policy="policy")) as service:
        write(tmp_path / "policy", TWO)
        await publish(service, TWO, CANARY)
    async with running(settings_for(tmp_path, policy="policy")) as service:
        found = await status_of(service)
        assert found["ruling"]["release"]["digest"] == digest_of(ONE)
        assert found["canary"]["release"]["digest"] == digest_of(TWO)
