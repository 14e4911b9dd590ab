"""What takes the place of what: nothing ends a canary unsaid, and nothing else is promoted than what is meant."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import PIPE, CompletedProcess
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.first_example import TIDEGATE
from tests.parts import commands
from tests.parts.policy_service import Edge, Running, digest_of, running, settings_for, until, variant, write

ONE, TWO, THREE = (variant(name) for name in ("one", "two", "three"))
CANARY = "role=canary&percent=10"
GUARDED = f"{CANARY}&guard_denials=0.05&guard_calls=50"


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    """Where one bundle rules an edge, and a guarded canary of another one is release 2."""
    settings = settings_for(tmp_path)
    config = {"listen": settings.listen, "tenant": "acme", "servers": {}}
    (tmp_path / "tidegate.yaml").write_text(json.dumps(config))
    async with running(settings) as served:
        await publish(served, ONE, "")
        await Edge(served.log, "e1").activate(1, digest_of(ONE))
        await until(lambda: "e1" in served.opened.service.state.edges)
        await publish(served, TWO, GUARDED)
        yield served


async def asked(service: Running, files: dict[str, str], query: str) -> tuple[int, dict[str, Any]]:
    return await service.ask("POST", f"/api/v1/bundles?{query}", {"files": files})


async def publish(service: Running, files: dict[str, str], query: str) -> dict[str, Any]:
    status, made = await asked(service, files, query)
    assert status == 201, made
    return made


async def tidegate(service: Running, *words: str) -> "CompletedProcess[str]":
    """A command of the command line, asked of the service; what it says on one line each, spaces as one."""
    root = Path(service.settings.root)
    done = await asyncio.to_thread(commands.tidegate, *words, "--config", "tidegate.yaml", cwd=root)
    done.stdout = "\n".join(" ".join(line.split()) for line in done.stdout.splitlines())
    return done


@pytest.mark.parametrize("role", ["canary", "shadow"])
async def test_another_bundle_takes_no_place_unless_that_is_said(service: Running, role: str) -> None:
    if role == "shadow":
        await publish(service, TWO, "role=shadow")
    stands = 3 if role == "shadow" else 2
    status, problem = await asked(service, THREE, f"role={role}")
    assert (status, problem["code"]) == (409, f"{role}-running")
    assert f"release {stands} (bundle {digest_of(TWO)[:12]}" in problem["detail"]
    assert "--replace" in problem["detail"]
    made = await publish(service, THREE, f"role={role}&replace=true")
    assert (made["replaced"]["number"], made["replaced"]["digest"]) == (stands, digest_of(TWO))
    assert (made["replaced"]["state"], made["replaced"]["followed_by"]) == ("retired", made["number"])


async def test_the_same_bundle_is_widened_without_a_word_and_the_answer_tells(service: Running) -> None:
    made = await publish(service, TWO, "role=canary&percent=50")
    assert (made["replaced"]["number"], made["replaced"]["guard"]["calls_min"], made["guard"]) == (2, 50, None)
    assert (await publish(service, THREE, ""))["replaced"] is None


async def test_each_retired_release_names_what_took_its_place(service: Running) -> None:
    await publish(service, THREE, f"{CANARY}&replace=true")
    status, _ = await service.ask("POST", "/api/v1/promote", {})
    assert status == 201
    _, releases = await service.ask("GET", "/api/v1/releases")
    told = [(one["number"], one["role"], one["state"], one["followed_by"]) for one in releases]
    assert told == [
        (5, "canary", "withdrawal", 0),
        (4, "ruling", "ruling", 0),
        (3, "canary", "retired", 5),
        (2, "canary", "retired", 3),
        (1, "ruling", "retired", 4),
    ]


async def test_what_is_meant_is_promoted_or_nothing(service: Running) -> None:
    for meant in (1, 3, digest_of(ONE)):
        status, problem = await service.ask("POST", "/api/v1/promote", {"release": meant})
        assert (status, problem["code"]) == (409, "other-release")
        assert "release 2 (bundle" in problem["detail"]
    status, problem = await service.ask("POST", "/api/v1/promote", {"ring": "prod", "from": "main", "release": 2})
    assert (status, problem["code"]) == (409, "other-release")
    status, made = await service.ask("POST", "/api/v1/promote", {"release": digest_of(TWO)})
    assert (status, made["number"], made["digest"]) == (201, 3, digest_of(TWO))


async def test_a_ring_that_no_edge_is_of_is_warned_of_and_made(service: Running) -> None:
    made = await publish(service, ONE, "ring=mian")
    assert made["warnings"] == ["no edge of ring 'mian' has been heard of; there are edges of main"]
    assert (await publish(service, THREE, ""))["warnings"] == []
    status, made = await service.ask("POST", "/api/v1/promote", {"ring": "prod", "from": "main"})
    assert (status, made["warnings"][0][:25]) == (201, "no edge of ring 'prod' ha")


async def test_people_are_told_what_a_release_takes_the_place_of(service: Running) -> None:
    write(Path(service.settings.root) / "slip", THREE)
    refused = await tidegate(service, "bundle", "publish", "slip", "--canary", "10%")
    assert refused.returncode == 1
    assert "not released release 2 (bundle" in refused.stdout
    done = await tidegate(service, "bundle", "publish", "slip", "--canary", "10%", "--replace")
    assert done.returncode == 0, done.stderr
    assert f"in place of the canary of release 2 (bundle {digest_of(TWO)[:12]}, guarded)" in done.stdout
    listed = (await tidegate(service, "bundle", "list")).stdout
    assert "published; release 3 took its place" in listed
    typo = await tidegate(service, "bundle", "publish", "slip", "--ring", "mian")
    assert (typo.returncode, "look at no edge of ring 'mian' has been heard of" in typo.stdout) == (0, True)


async def test_a_bad_bundle_lists_each_problem_once(service: Running) -> None:
    bad = variant("bad", **{"policies/p.cedar": '@id("a") permit (principal, action, resource) when {'})
    write(Path(service.settings.root) / "bad", bad)
    done = await tidegate(service, "bundle", "publish", "bad")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "not released the bundle has 1 problem"
    assert sum("p.cedar" in line for line in lines) == 1, done.stdout


async def test_people_are_told_what_they_promote_and_what_is_known_of_it(service: Running) -> None:
    refused = await tidegate(service, "bundle", "promote", "1")
    assert refused.returncode != 0
    assert "not release 1; nothing was promoted" in refused.stderr
    done = await tidegate(service, "bundle", "promote", digest_of(TWO)[:16])
    assert done.returncode == 0, done.stderr
    canary, doubt, promoted, *_ = done.stdout.splitlines()
    assert canary.startswith("canary release 2 of main, bundle")
    assert canary.endswith("decided 0 calls")
    assert doubt == "look at its guard concludes nothing from fewer than 50 calls"
    assert promoted.startswith("promoted release 3 of main")
    listed = (await tidegate(service, "bundle", "list")).stdout
    assert "it was release 2, the canary" in listed
    assert "promoted: it was release 2, the canary" in (await tidegate(service, "bundle", "status")).stdout


async def test_a_canary_that_was_tried_is_promoted_without_a_doubt(service: Running) -> None:
    edge = Edge(service.log, "e1")
    await edge.activate(2, digest_of(TWO), "canary")
    await edge.observe(2, digest_of(TWO), "canary", decided=50)
    state = service.opened.service.state
    await until(lambda: state.observations.total("main", "canary", 2).decided == 50)
    done = await tidegate(service, "bundle", "promote", "--json")
    assert (done.returncode, json.loads(done.stdout)["warnings"]) == (0, [])


async def test_a_guard_that_waits_for_more_callers_says_so(service: Running) -> None:
    edge = Edge(service.log, "e1")
    await edge.observe(1, digest_of(ONE), decided=1_000, callers=50)
    await edge.activate(2, digest_of(TWO), "canary")
    await edge.observe(2, digest_of(TWO), "canary", decided=60, denied=30, callers=2, most_denied=(30,))
    state = service.opened.service.state
    await until(lambda: state.observations.total("main", "canary", 2).decided == 60)
    waits = "1 of 2 callers so far: 30 of 60 calls (50.0%) were denied, 0 of 1000 (0.0%)"
    told = (await tidegate(service, "bundle", "status")).stdout
    assert f"guard waits: {waits}" in told, told
    found = json.loads((await tidegate(service, "bundle", "status", "--json")).stdout)["rings"][0]["canary"]
    assert (found["watching"], found["awaited"]["callers"], found["awaited"]["callers_needed"]) == ("watching", 1, 2)
    assert f"look at its guard waits: {waits}" in (await tidegate(service, "bundle", "promote")).stdout


@pytest.mark.parametrize(("answer", "number"), [("n", 2), ("y", 4)])
async def test_on_a_terminal_too_few_calls_are_asked_about(service: Running, answer: str, number: int) -> None:
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        asking = await asyncio.create_subprocess_exec(
            *(str(TIDEGATE), "bundle", "promote"), cwd=service.settings.root, stdin=theirs, stdout=PIPE, stderr=PIPE
        )
        _, told = await asyncio.wait_for(asking.communicate(), 60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Promote it all the same" in told
    assert (asking.returncode == 0) is (answer == "y")
    assert service.opened.service.state.number_of("main") == number


NARROW = variant("narrow", **{"policies/p.cedar": '@id("a") permit (principal in Group::"eng", action, resource);'})
WIDE = variant("wide", **{"policies/p.cedar": '@id("a") permit (principal, action, resource);'})


@pytest_asyncio.fixture
async def narrow(service: Running) -> Running:
    """Where a ring is ruled by a bundle for one group, and one for everybody lies in a directory."""
    await publish(service, NARROW, "ring=side")
    write(Path(service.settings.root) / "wide", WIDE)
    write(Path(service.settings.root) / "narrow", NARROW)
    return service


async def test_what_lets_more_pass_is_told_before_it_is_released(narrow: Running) -> None:
    done = await tidegate(narrow, "bundle", "publish", "wide", "--ring", "side")
    assert done.returncode == 0, done.stderr
    wider, example, *_ = done.stdout.splitlines()
    assert wider.startswith("more permissive any-")
    assert wider.endswith("deny → allow, by a")
    assert example.startswith("for example ")
    assert "released release 2 of side" in done.stdout
    back = await tidegate(narrow, "bundle", "publish", "narrow", "--ring", "side")
    assert "more permissive" not in back.stdout, "what is stricter is not asked about"
    shadow = await tidegate(narrow, "bundle", "publish", "wide", "--ring", "side", "--shadow")
    assert "more permissive" not in shadow.stdout, "it decides nothing"
    told = json.loads((await tidegate(narrow, "bundle", "publish", "wide", "--ring", "side", "--json")).stdout)
    assert (told["created"], told["more_permissive"]["changes"][0]["after"]) == (True, "allow")
    again = json.loads((await tidegate(narrow, "bundle", "publish", "wide", "--ring", "side", "--json")).stdout)
    nothing = {"changes": [], "limits": [], "files": [], "whole": True}
    assert (again["created"], again["more_permissive"]) == (False, nothing)


async def test_a_release_that_mentions_more_than_is_tried_is_told_not_to_be_compared_whole(narrow: Running) -> None:
    many = " || ".join(f'context.args.n == "v{number}"' for number in range(13))
    never = f'@id("n") forbid (principal, action == Action::"fs/read", resource) when {{ {many} }};'
    write(Path(narrow.settings.root) / "many", {"policies/n.cedar": never, **NARROW})
    done = await tidegate(narrow, "bundle", "publish", "many", "--ring", "side")
    assert done.returncode == 0, done.stderr
    assert "more permissive" not in done.stdout
    assert "not all of it is compared" in " ".join(done.stdout.split())
    write(Path(narrow.settings.root) / "more", {"policies/n.cedar": never.replace("v0", "w0"), **NARROW})
    told = json.loads((await tidegate(narrow, "bundle", "publish", "more", "--ring", "side", "--json")).stdout)
    assert told["more_permissive"]["whole"] is False


@pytest.mark.parametrize(("answer", "more", "number"), [("n", (), 1), ("y", (), 2), ("n", ("--yes",), 2)])
async def test_on_a_terminal_what_lets_more_pass_is_asked_about(
    narrow: Running, answer: str, more: tuple[str, ...], number: int
) -> None:
    ours, theirs = os.openpty()
    words = (str(TIDEGATE), "bundle", "publish", "wide", "--ring", "side", *more)
    try:
        os.write(ours, f"{answer}\n".encode())
        asking = await asyncio.create_subprocess_exec(
            *words, cwd=narrow.settings.root, stdin=theirs, stdout=PIPE, stderr=PIPE
        )
        _, told = await asyncio.wait_for(asking.communicate(), 60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"Release it all the same" in told) is (not more)
    assert narrow.opened.service.state.number_of("side") == number
