"""The whole pipeline: calls at two edges become findings, rows in ClickHouse and quarantines that both edges obey."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.parts.asking import until
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client, running_load
from tests.parts.cluster import Cluster, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
PLAN = (
    "From the first of March the shop moves to three tiers: small customers keep the price of today for twelve months, "
    "medium ones pay eleven percent more, large ones get a contract with a floor of forty-two thousand a year."
)
WEATHER = (
    "Tomorrow brings rain in the west and a few clear hours in the east, with wind from the sea that eases towards the "
    "evening, and the night stays mild for the season according to everybody who looked out of a window."
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, valkey_url: str) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("pipeline")
    with running_upstream(directory) as up:
        servers = {
            "vault": {"url": up["url"], "labels": ["sensitive"]},
            "out": {"url": up["url"], "labels": ["egress"]},
            "up": {"url": up["url"]},
        }
        with running_cluster(
            directory,
            kafka.bootstrap,
            servers=servers,
            bundle=lab_bundle(("vault", "out", "up")),
            audit=True,
            detecting=True,
            sessions=valkey_url,
            detector={"burst": {"window_s": 2.0, "calls_min": 60, "severity": "medium"}},
        ) as cluster:
            yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    with telling(running):
        yield running


def findings(cluster: Cluster) -> list[dict[str, Any]]:
    """What security teams read: the detections topic."""
    return [msgspec.json.decode(value) for value in cluster.values("detections")]


def rows(cluster: Cluster, subject_id: str, rule: str) -> list[dict[str, Any]]:
    """Findings of one rule: whoever asks again and again until a session is stopped makes a burst as well."""
    return cluster.query(
        f"SELECT finding_id, rule, severity, session_id, call_ids, ocsf FROM tidegate.findings "
        f"WHERE subject_id = '{subject_id}' AND rule = '{rule}' ORDER BY finding_id"
    )


def subject_of(cluster: Cluster, user: str) -> str:
    cluster.wait_shipped()
    return next(event.subject_id for event in cluster.requests() if event.sealed.subject == user)


async def test_text_that_leaves_a_sensitive_server_is_found_and_its_session_is_stopped_everywhere(
    cluster: Cluster,
) -> None:
    a, b = (edge.base for edge in cluster.edges)
    user = "mallory@example.com"
    async with http_client() as client:
        mallory = Raw(client, cluster.token(user))
        honest = Raw(client, cluster.token("honest@example.com"))
        session, other = await mallory.initialize(a), await mallory.initialize(b)
        for raw, at in ((mallory, session), (honest, await honest.initialize(a))):
            assert (await raw.call(a, "vault__echo", at, text=PLAN)).is_ok
        assert (await honest.call(b, "out__echo", text=WEATHER)).is_ok
        assert (await mallory.call(b, "out__echo", session, text=f"by the way: {PLAN} Good night.")).is_ok
        sent_s = time.monotonic()
        for base in (a, b):
            while (told := await mallory.call(base, "up__echo", session, text="x")).is_ok:
                assert time.monotonic() - sent_s < 10.0, "the session is still served"
                await asyncio.sleep(0.05)  # asked faster, it were a burst as well
            assert (told.decision["stage"], told.decision["reason"]) == ("quarantine", "quarantined")
            assert "vault/echo" in told.text
            assert "out/echo" in told.text
        print(f"sent → refused at both edges: {time.monotonic() - sent_s:.2f} s")
        assert (await mallory.call(a, "up__echo", other, text="x")).is_ok, "another session of the same principal"
        assert (await honest.call(b, "up__echo", text="x")).is_ok

    subject = await asyncio.to_thread(subject_of, cluster, user)
    await asyncio.to_thread(
        until, lambda: len(rows(cluster, subject, "exfiltration")) == 1, "the finding is in ClickHouse"
    )
    (row,) = rows(cluster, subject, "exfiltration")
    assert (row["rule"], row["severity"]) == ("exfiltration", "high")
    assert len(row["call_ids"]) == 2
    finding = next(one for one in findings(cluster) if one["metadata"]["uid"] == row["finding_id"])
    assert msgspec.json.decode(row["ocsf"]) == finding
    assert (finding["class_uid"], finding["category_uid"]) == (2004, 2)
    assert finding["severity_id"] == 4
    assert PLAN[:40] not in str(finding)
    quarantines = cluster.manage("GET", "/quarantines")[1]
    assert [(q["scope"], q["value"], q["actor"]) for q in quarantines if q["finding_id"] == row["finding_id"]] == [
        ("session", row["session_id"], "detector")
    ]
    honest_subject = await asyncio.to_thread(subject_of, cluster, "honest@example.com")
    assert rows(cluster, honest_subject, "exfiltration") == []


async def test_a_burst_is_found_once_and_stops_nobody(cluster: Cluster) -> None:
    user = "burst@example.com"
    bases = [edge.base for edge in cluster.edges]
    async with running_load([cluster.token(user)], bases, name="burst", calls_max=320) as load:
        while len(load.answered) < 320:
            await asyncio.sleep(0.02)
    assert load.done == 320, "a burst of medium severity is told and not stopped"
    subject = await asyncio.to_thread(subject_of, cluster, user)
    await asyncio.to_thread(until, lambda: rows(cluster, subject, "burst") != [], "the burst is in ClickHouse")
    (row,) = rows(cluster, subject, "burst")
    assert (row["rule"], row["severity"]) == ("burst", "medium")


async def test_a_detector_that_was_killed_goes_on_and_says_nothing_twice(cluster: Cluster) -> None:
    a, b = (edge.base for edge in cluster.edges)
    before = {one["metadata"]["uid"] for one in findings(cluster)}
    user = "trudy@example.com"
    async with http_client() as client:
        trudy = Raw(client, cluster.token(user))
        session = await trudy.initialize(a)
        assert (await trudy.call(a, "vault__echo", session, text=PLAN)).is_ok
        await asyncio.to_thread(cluster.wait_shipped)
        cluster.detector.kill()
        assert (await trudy.call(b, "out__echo", session, text=PLAN)).is_ok
        cluster.detector.start()
        subject = await asyncio.to_thread(subject_of, cluster, user)
        await asyncio.to_thread(
            until, lambda: len(rows(cluster, subject, "exfiltration")) == 1, "the read is remembered"
        )
        while (await trudy.call(b, "up__echo", session, text="x")).is_ok:
            await asyncio.sleep(0.05)
    (row,) = rows(cluster, subject, "exfiltration")
    assert {one["metadata"]["uid"] for one in findings(cluster)} == before | {row["finding_id"]}
    (counts,) = cluster.query("SELECT count() AS n, uniqExact(finding_id) AS distinct FROM tidegate.findings")
    assert counts["n"] == counts["distinct"] == len(before) + 1
