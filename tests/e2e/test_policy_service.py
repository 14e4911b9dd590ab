"""The policy service over the local log, asked by real HTTP with real tokens, beside an edge's view of the same log."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.parts.kafka import Kafka
from tests.parts.policy_service import Running, digest_of, running, settings_for, until, variant, write

from tidegate.chain import Chain, open_event
from tidegate.errors import BundleFault, LogUnavailable
from tidegate.events import BundleActivated, BundleRejected, QuarantineImposed
from tidegate.identity import Refused
from tidegate.ids import now_us, subject_id, uuid7
from tidegate.log.opening import open_log
from tidegate.log.port import Record
from tidegate.policy.bundle import Bundle, bundle_of, load_bundle
from tidegate.policy.release import PolicyState, Rejection
from tidegate.policy.signing import ensure_signing_key, trusted_keys
from tidegate.privacy.keys import SubjectKey, Wrapping, topic_key
from tidegate.privacy.ring import load_ring
from tidegate.secrets import open_secrets
from tidegate.settings import Settings
from tidegate_policy.publish import Terms
from tidegate_policy.service import create_policy, writer_id

BANK = Path(__file__).parent.parent / "cases" / "bank"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path)) as served:
        yield served


async def test_a_published_bundle_is_checked_signed_released_and_obeyed(service: Running) -> None:
    bundle = load_bundle(BANK)
    files = {path: content.decode() for path, content in bundle.files.items()}
    status, release = await service.ask("POST", "/api/v1/bundles", {"files": files})
    assert status == 201
    assert (release["number"], release["digest"], release["cause"], release["current"]) == (
        1,
        bundle.digest,
        "published",
        True,
    )
    assert "root@example.com" not in str(release)
    await until(lambda: len(service.onlooker.activations) == 1)
    assert service.onlooker.activations[0].bundle == bundle

    status, again = await service.ask(
        "POST", "/api/v1/bundles", bundle.canonical, headers={"Content-Type": "application/vnd.tidegate.bundle+json"}
    )
    assert (status, again["number"], again["created"]) == (200, 1, False)

    status, listed = await service.ask("GET", "/api/v1/bundles")
    assert [view["digest"] for view in listed] == [bundle.digest]
    status, content = await service.ask("GET", f"/api/v1/bundles/{bundle.digest}")
    assert content["files"] == files


async def test_a_broken_bundle_is_refused_with_its_problems_and_the_old_one_rules_on(service: Running) -> None:
    await service.ask("POST", "/api/v1/bundles", {"files": variant("good")})
    broken = variant("broken", **{"policies/p.cedar": 'permit (principal, action, resource);\n@id("x") permit ('})
    status, problem = await service.ask("POST", "/api/v1/bundles", {"files": broken})
    assert (status, problem["status"], problem["code"]) == (422, 422, "bad-bundle")
    assert problem["problems"][0]["path"] == "policies/p.cedar"
    failing = variant("failing", **{"cases.yaml": "- {note: n, user: u, server: s, tool: t, expect: deny}"})
    status, problem = await service.ask("POST", "/api/v1/bundles", {"files": failing})
    assert (status, problem["problems"][0]["line"]) == (422, 1)
    status, releases = await service.ask("GET", "/api/v1/releases")
    assert [release["digest"] for release in releases] == [digest_of(variant("good"))]


async def test_rolling_back_is_a_new_release_of_an_old_bundle(service: Running) -> None:
    for name in ("one", "two", "three"):
        await service.ask("POST", "/api/v1/bundles", {"files": variant(name)})
    status, release = await service.ask("POST", "/api/v1/rollback", {"to": 1})
    assert (status, release["number"], release["cause"]) == (201, 4, "rolled-back")
    assert release["digest"] == digest_of(variant("one"))
    assert release["previous"] == digest_of(variant("three"))
    status, release = await service.ask("POST", "/api/v1/rollback", {"ring": "main", "to": digest_of(variant("two"))})
    assert (status, release["number"]) == (201, 5)
    await until(lambda: len(service.onlooker.activations) == 5)
    assert [activation.release.number for activation in service.onlooker.activations] == [1, 2, 3, 4, 5]
    status, problem = await service.ask("POST", "/api/v1/rollback", {"to": 2})
    assert (status, problem["code"]) == (409, "already-current")
    status, problem = await service.ask("POST", "/api/v1/rollback", {"to": 99})
    assert (status, problem["code"]) == (404, "release-unknown")


async def test_rings_are_released_apart(service: Running) -> None:
    await service.ask("POST", "/api/v1/bundles", {"files": variant("one")})
    await service.ask("POST", "/api/v1/bundles?ring=canary", {"files": variant("two")})
    _, releases = await service.ask("GET", "/api/v1/releases?ring=canary")
    assert [(release["ring"], release["number"]) for release in releases] == [("canary", 1)]
    status, problem = await service.ask("POST", "/api/v1/bundles?ring=No|Ring", {"files": variant("one")})
    assert (status, problem["code"]) == (422, "ring-malformed")


async def test_concurrent_publishers_get_numbers_of_their_own(service: Running) -> None:
    answers = await asyncio.gather(
        *[service.ask("POST", "/api/v1/bundles", {"files": variant(f"v{number}")}) for number in range(8)]
    )
    assert sorted(release["number"] for _, release in answers) == list(range(1, 9))
    await until(
        lambda: service.onlooker.policy.ruling is not None and service.onlooker.policy.ruling.release.number == 8
    )


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        ("", 401, "token-missing"),
        ("nonsense", 401, "token-malformed"),
        ("wrong-audience", 401, "token-audience-wrong"),
        ("wrong-group", 403, "not-an-administrator"),
    ],
)
async def test_only_an_administrator_with_a_token_for_this_api_may_ask(
    service: Running, token: str, status: int, code: str
) -> None:
    tokens = {
        "wrong-audience": service.token(audience=f"{service.settings.url}/mcp"),
        "wrong-group": service.token("eng"),
    }
    for method, path in (
        ("GET", "/api/v1/bundles"),
        ("POST", "/api/v1/bundles"),
        ("GET", "/api/v1/bundles/x"),
        ("POST", "/api/v1/rollback"),
        ("GET", "/api/v1/releases"),
        ("GET", "/api/v1/edges"),
        ("GET", "/api/v1/quarantines"),
        ("POST", "/api/v1/quarantines"),
        ("DELETE", "/api/v1/quarantines/x"),
    ):
        found, problem = await service.ask(
            method, path, {} if method == "POST" else None, token=tokens.get(token, token)
        )
        assert (found, problem["code"]) == (status, code)


AGENT = {"scope": "agent", "value": "x", "reason": "y"}


async def test_malformed_requests_get_a_sentence(service: Running) -> None:
    for method, path, body, code in (
        ("POST", "/api/v1/bundles", b"\xff", "bad-bundle"),
        ("POST", "/api/v1/bundles", {"files": {"../x": ""}}, "bad-bundle"),
        ("POST", "/api/v1/rollback", {"too": 1}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {"scope": "planet", "value": "x", "reason": "y"}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {"scope": "tool", "value": "read", "reason": "y"}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {**AGENT, "ttl_s": 1e-9}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {**AGENT, "reason": "so\x1b[2J"}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {**AGENT, "reason": "two\nlines"}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {**AGENT, "reason": "turned \u202e round"}, "request-malformed"),
        ("POST", "/api/v1/quarantines", {**AGENT, "value": "x\n"}, "request-malformed"),
        ("DELETE", "/api/v1/quarantines/x?reason=a%0Ab", None, "request-malformed"),
        ("POST", "/api/v1/approvals/x", {"decision": "deny", "reason": "a\nb"}, "request-malformed"),
        ("POST", "/api/v1/catalog/approvals", {"server": "x", "reason": "a\u2028b"}, "request-malformed"),
        ("POST", "/api/v1/erasures", {"subject": "i|s", "reason": "a\nb"}, "request-malformed"),
        ("POST", "/api/v1/rollback", {"to": True}, "request-malformed"),
        ("POST", "/api/v1/promote", {"release": True}, "request-malformed"),
        ("GET", "/api/v1/releases?limit=0", None, "request-malformed"),
    ):
        status, problem = await service.ask(method, path, body)
        assert (status, problem["code"]) == (422, code)
        assert problem["detail"]


async def test_a_quarantine_reaches_the_edges_and_ends_when_lifted_or_expired(service: Running) -> None:
    wanted = {"scope": "session", "value": "s1", "reason": "Suspicious reading.", "ttl_s": 0}
    status, made = await service.ask("POST", "/api/v1/quarantines", wanted)
    assert status == 201
    await until(lambda: service.onlooker.quarantines.match("s1", "", "", "", "", now_us()) is not None)
    await service.ask("POST", "/api/v1/quarantines", {**wanted, "value": "s2", "ttl_s": 1})
    status, listed = await service.ask("GET", "/api/v1/quarantines")
    assert made["quarantine_id"] in [view["quarantine_id"] for view in listed]
    await until(lambda: service.onlooker.stored == {made["quarantine_id"]})  # the short one has gone from control-state
    status, _ = await service.ask("DELETE", f"/api/v1/quarantines/{made['quarantine_id']}?reason=cleared")
    assert status == 204
    await until(lambda: service.onlooker.stored == set())
    status, listed = await service.ask("GET", "/api/v1/quarantines")
    assert listed == []
    status, problem = await service.ask("DELETE", f"/api/v1/quarantines/{made['quarantine_id']}")
    assert (status, problem["code"]) == (404, "quarantine-unknown")


async def test_a_quarantine_that_only_the_history_holds_is_brought_to_the_edges(service: Running) -> None:
    event = QuarantineImposed(
        id=uuid7(),
        time_us=now_us(),
        tenant="acme",
        region="local",
        quarantine_id="from-detector",
        scope="subject",
        value="u1",
        reason="Text left a sensitive server.",
        actor="detector",
    )
    await service.log.append([Chain("detector.1").seal(event)])
    await until(lambda: "from-detector" in service.onlooker.stored)
    _, listed = await service.ask("GET", "/api/v1/quarantines")
    assert [view["quarantine_id"] for view in listed] == ["from-detector"]


async def test_a_quarantine_whose_state_is_read_before_its_history_is_left_alone(service: Running) -> None:
    event = QuarantineImposed(
        id=uuid7(),
        time_us=now_us(),
        tenant="acme",
        region="local",
        quarantine_id="early",
        scope="server",
        value="fs",
        reason="r",
        actor="detector",
    )
    imposed = Chain("detector.1").seal(event)
    await service.log.append([Record("control-state", b"acme|early", imposed.value)])
    await until(lambda: service.opened.service.state.quarantines.get("early") is not None)
    _, made = await service.ask("POST", "/api/v1/quarantines", {"scope": "agent", "value": "x", "reason": "r"})
    await service.log.append([imposed])
    await until(lambda: {"early", made["quarantine_id"]} <= service.onlooker.stored)
    assert service.onlooker.quarantines.match("", "", "", "fs", "", now_us()) is not None


async def test_the_status_of_edges_says_who_runs_what_since_when(service: Running) -> None:
    for name in ("one", "two"):
        await service.ask("POST", "/api/v1/bundles", {"files": variant(name)})
    digests = [digest_of(variant("one")), digest_of(variant("two"))]
    chain = Chain("edge-1.1")

    def activated(edge: str, number: int, at_us: int) -> Record:
        common: dict[str, Any] = {"id": uuid7(), "time_us": at_us, "tenant": "acme", "region": "local"}
        return chain.seal(BundleActivated(**common, edge=edge, ring="main", number=number, digest=digests[number - 1]))

    rejected = BundleRejected(
        id=uuid7(),
        time_us=9,
        tenant="acme",
        region="local",
        edge="e1",
        ring="main",
        number=2,
        digest=digests[1],
        reason="bad-bundle",
    )
    foreign = BundleActivated(
        id=uuid7(), time_us=9, tenant="evil", region="local", edge="e9", ring="main", number=2, digest=""
    )
    await service.log.append(
        [activated("e1", 1, 5), activated("e1", 1, 7), chain.seal(rejected), activated("e2", 2, 8), chain.seal(foreign)]
    )
    await until(lambda: set(service.opened.service.state.edges) == {"e1", "e2"})
    _, edges = await service.ask("GET", "/api/v1/edges")
    assert [(edge["edge"], edge["number"], edge["since_us"], edge["behind"]) for edge in edges] == [
        ("e1", 1, 5, True),
        ("e2", 2, 8, False),
    ]
    assert edges[0]["rejected"] == {"number": 2, "digest": digests[1], "reason": "bad-bundle", "at_us": 9}
    assert edges[1]["rejected"] is None


async def test_a_restarted_service_continues_from_the_log_alone(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    async with running(settings) as first:
        for name in ("one", "two"):
            await first.ask("POST", "/api/v1/bundles", {"files": variant(name)})
        await first.ask("POST", "/api/v1/quarantines", {"scope": "agent", "value": "rogue", "reason": "r"})
    async with running(settings_for(tmp_path)) as second:
        _, releases = await second.ask("GET", "/api/v1/releases")
        assert [release["number"] for release in releases] == [2, 1]
        _, release = await second.ask("POST", "/api/v1/rollback", {"to": 1})
        assert release["number"] == 3
        _, listed = await second.ask("GET", "/api/v1/quarantines")
        assert [view["value"] for view in listed] == ["rogue"]
        await until(
            lambda: second.onlooker.policy.ruling is not None and second.onlooker.policy.ruling.release.number == 3
        )


async def test_a_restart_does_not_undo_a_roll_back(tmp_path: Path) -> None:
    directory = tmp_path / "policy"
    write(directory, variant("one"))
    async with running(settings_for(tmp_path, policy="policy")) as served:
        await served.ask("POST", "/api/v1/bundles", {"files": variant("two")})
        write(directory, variant("two"))
        await served.ask("POST", "/api/v1/rollback", {"to": 1})
    async with running(settings_for(tmp_path, policy="policy")) as served:
        _, releases = await served.ask("GET", "/api/v1/releases")
        assert [release["number"] for release in releases] == [3, 2, 1]
    write(directory, variant("three"))
    async with running(settings_for(tmp_path, policy="policy")) as served:
        _, releases = await served.ask("GET", "/api/v1/releases")
        assert releases[0]["number"] == 4


async def test_local_mode_publishes_the_configured_bundle_once_and_again_when_it_changed(tmp_path: Path) -> None:
    directory = tmp_path / "policy"
    write(directory, variant("one"))
    for _ in range(2):
        async with running(settings_for(tmp_path, policy="policy")) as served:
            _, releases = await served.ask("GET", "/api/v1/releases")
            assert [(release["number"], release["actor"]) for release in releases] == [(1, "policy-service")]
    write(directory, variant("two"))
    async with running(settings_for(tmp_path, policy="policy")) as served:
        _, releases = await served.ask("GET", "/api/v1/releases")
        assert [release["number"] for release in releases] == [2, 1]
    write(directory, variant("broken", **{"policies/p.cedar": "permit"}))
    with pytest.raises(BundleFault, match=r"policies/p\.cedar:1"):
        async with running(settings_for(tmp_path, policy="policy")):
            pytest.fail("a broken bundle must not start")


async def test_a_release_whose_append_failed_never_shares_its_number(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.ask("POST", "/api/v1/bundles", {"files": variant("one")})
    append = service.log.append

    async def stored_but_not_told(records: list[Record]) -> None:
        await append(records)
        raise LogUnavailable("the acknowledgement was lost")

    monkeypatch.setattr(service.log, "append", stored_but_not_told)
    status, problem = await service.ask("POST", "/api/v1/bundles", {"files": variant("two")})
    assert (status, problem["code"]) == (503, "log-unavailable")
    monkeypatch.undo()
    status, release = await service.ask("POST", "/api/v1/bundles", {"files": variant("three")})
    assert (status, release["number"]) == (201, 3)
    await until(
        lambda: service.onlooker.policy.ruling is not None and service.onlooker.policy.ruling.release.number == 3
    )
    await until(lambda: 2 in service.opened.service.state.releases["main"])
    writers = set()
    subscription = await service.log.follow(("policy",))
    while not subscription.caught_up or not writers:
        writers |= {open_event(record.value or b"").writer for record in await subscription.poll(100, 0.2)}
    assert len(writers) == 2  # after the uncertain append a new chain began


async def test_health_metrics_keys_and_the_openapi_document_need_no_token(service: Running) -> None:
    await service.ask("POST", "/api/v1/bundles", {"files": variant("one")})
    async with service.client.get(f"{service.base}/metrics") as response:
        assert 'tidegate_policy_release{ring="main"} 1.0' in await response.text()
    async with service.client.get(f"{service.base}/.well-known/jwks.json") as response:
        assert (await response.json())["keys"][0]["kty"] == "RSA"
    async with service.client.get(f"{service.base}/openapi.json") as response:
        document = await response.json()
    assert set(document["paths"]["/api/v1/bundles"]) == {"get", "post"}
    assert "401" in document["paths"]["/api/v1/edges"]["get"]["responses"]
    assert document["paths"]["/api/v1/edges"]["get"]["security"]


async def test_the_signing_key_is_private_and_its_bundles_are_canonical(service: Running) -> None:
    await service.ask("POST", "/api/v1/bundles", {"files": variant("one")})
    path = service.settings.data_dir / "keys" / "bundle.pem"
    assert path.stat().st_mode & 0o077 == 0
    await until(lambda: len(service.onlooker.activations) == 1)
    canonical = service.onlooker.activations[0].bundle.canonical
    assert Bundle.from_bytes(canonical).digest == digest_of(variant("one"))
    assert writer_id(service.settings) == "policy-acme"


async def test_a_subject_is_erased_over_the_api_and_nobody_else_is(service: Running) -> None:
    wrapping, subject = Wrapping([b"m" * 32]), "a" * 32
    keys = [SubjectKey.generate("acme", who, now_us()) for who in (subject, subject, "b" * 32)]
    records = [Record("subject-keys", topic_key("acme", key.subject_id, key.kid), wrapping.wrap(key)) for key in keys]
    await service.log.append(records)
    wanted = {"subject": subject, "reason": "asked to"}
    status, dry = await service.ask("POST", "/api/v1/erasures", wanted | {"dry_run": True})
    assert (status, dry["keys"], dry["erasure_id"], dry["erased_us"]) == (200, 2, "", 0)
    assert (await service.ask("GET", "/api/v1/erasures"))[1] == []
    status, done = await service.ask("POST", "/api/v1/erasures", wanted)
    assert (status, done["keys"], done["subject_id"], done["reason"]) == (201, 2, subject, "asked to")
    ring = await load_ring(service.log, wrapping)
    assert [ring.find(key.kid) for key in keys] == [None, None, keys[2]]
    status, listed = await service.ask("GET", "/api/v1/erasures")
    assert (status, listed) == (200, [done])
    assert (await service.ask("GET", "/api/v1/quarantines"))[1] == [], "its state record is no quarantine"
    async with service.client.get(f"{service.base}/metrics") as response:
        metrics = await response.text()
    assert 'tidegate_policy_erasures{state="finished"} 1.0' in metrics
    assert 'tidegate_policy_erasures{state="unfinished"} 0.0' in metrics

    issuer = service.issuer.issuer
    status, named = await service.ask("POST", "/api/v1/erasures", {"subject": f"{issuer}|ann", "reason": "x"})
    assert status == 201
    pepper = open_secrets(service.settings).pepper("acme")
    assert named["subject_id"] == subject_id(pepper, issuer, "ann")
    for body, code in (
        ({"subject": "ann@example.com", "reason": "x"}, "subject-malformed"),
        ({"subject": subject}, "request-malformed"),
        ({"subject": subject, "reason": ""}, "request-malformed"),
        ({"subject": subject, "reason": "x", "all": True}, "request-malformed"),
    ):
        status, problem = await service.ask("POST", "/api/v1/erasures", body)
        assert (status, problem["code"]) == (422, code)
    status, _ = await service.ask("POST", "/api/v1/erasures", wanted, token=service.token("eng"))
    assert status == 403


PUBLISH_FOR_EVER = """
import asyncio, sys
from pathlib import Path
import msgspec
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.bundle import bundle_of
from tidegate.settings import Settings
from tidegate_policy.publish import Terms
from tidegate_policy.service import create_policy

async def main(root):
    settings = msgspec.convert({"root": root, "tenant": "acme"}, Settings)
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    async with create_policy(settings, log, None) as service:
        while service.awaiting():
            await asyncio.sleep(0.001)
        number = 0
        while True:
            number += 1
            policy = '@id("a") permit (principal, action, resource);//' + "x" * 900_000 + str(number)
            files = {"manifest.json": b'{"v": 1, "name": "n"}', "policies/p.cedar": policy.encode()}
            done = await service.publisher.publish(bundle_of(files), Terms(), "test")
            print(done.release.number, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_service_killed_while_publishing_leaves_whole_releases_and_no_number_twice(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings.data_dir.mkdir()
    told: list[int] = []
    for lines in (2, 3, 1):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PUBLISH_FOR_EVER, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(lines):
            async with asyncio.timeout(30):
                told.append(int(await child.stdout.readline()))
        child.kill()  # somewhere in the next release
        told += [int(line) for line in (await child.stdout.read()).split()]
        await child.wait()
    async with running(settings) as served:
        state = served.opened.service.state
        released = state.releases["main"]
        assert set(told) <= released.keys()
        assert sorted(released) == list(range(1, len(released) + 1))
        newest = released[max(released)]
        for release in released.values():
            assert (await served.opened.service.publisher.bundle(release.digest)).digest == release.digest
        await until(lambda: served.onlooker.policy.ruling is not None)
        assert served.onlooker.activations[-1].release.digest == newest.digest
        assert served.onlooker.activations[-1].release.number == newest.number


@pytest.mark.kafka
async def test_a_second_service_of_a_tenant_takes_over_and_the_first_can_release_nothing_more(
    kafka: Kafka, tmp_path: Path
) -> None:
    def one(files: dict[str, str]) -> Bundle:
        return bundle_of({path: text.encode() for path, text in files.items()})

    ensure_signing_key(tmp_path / "bundle.pem")
    raw = {
        "root": str(tmp_path),
        "tenant": "acme",
        "log": f"kafka://{kafka.bootstrap}",
        "kafka": {"prefix": f"{uuid7()}.", "partitions": 2, "replication": 1, "min_insync": 1},
        "signing": {"key_file": "bundle.pem"},
    }
    settings = msgspec.convert(raw, Settings)
    logs = [open_log(settings, writer_id=writer_id(settings)) for _ in range(2)]
    await logs[0].prepare()
    try:
        async with create_policy(settings, logs[0], Nobody()) as first:
            await until(lambda: not first.awaiting(), 60)
            assert (await first.publisher.publish(one(variant("one")), Terms(), "a")).release.number == 1
            await logs[1].prepare()
            async with create_policy(settings, logs[1], Nobody()) as second:
                await until(lambda: not second.awaiting(), 60)
                with pytest.raises(LogUnavailable) as fault:
                    await first.publisher.publish(one(variant("stale")), Terms(), "a")
                assert fault.value.code == "writer-fenced"
                assert (first.awaiting(), second.awaiting()) == ({"writer"}, set())
                assert (await second.publisher.publish(one(variant("two")), Terms(), "b")).release.number == 2
                onlooker = PolicyState("acme", "main", trusted_keys([second.public_key]))
                subscription = await logs[1].follow(("policy-state",))
                while onlooker.ruling is None or onlooker.ruling.release.number < 2:
                    for record in await subscription.poll(100, 5):
                        assert not isinstance(onlooker.apply(record, now_us()), Rejection)
                assert onlooker.ruling.bundle == one(variant("two"))
    finally:
        for log in logs:
            await log.close()


class Nobody:
    """A verifier for services that are not asked over HTTP."""

    async def verify(self, token: str) -> Refused:
        return Refused("token-unknown", "nobody may ask here")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("alice@example.com", "subject-malformed"),
        ("ABCDEF0123456789ABCDEF0123456789", "subject-malformed"),
        (" 0123456789abcdef0123456789abcdef", "subject-malformed"),
        ("https://nobody.example|alice", "issuer-unknown"),
    ],
)
async def test_a_person_is_stopped_or_erased_by_a_name_that_is_theirs_alone(
    service: Running, value: str, code: str
) -> None:
    wanted = {"scope": "subject", "value": value, "reason": "r"}
    status, problem = await service.ask("POST", "/api/v1/quarantines", wanted)
    assert (status, problem["code"]) == (422, code)
    status, problem = await service.ask("POST", "/api/v1/erasures", {"subject": value, "reason": "r"})
    assert (status, problem["code"]) == (422, code)
