"""Verifying what a table no longer has to hold, periods, and a proof that a stranger's program can check."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tests.parts.sealed import Sealed, chained, hour, sealed_house

from tidegate.events import Leaf
from tidegate.ids import now_us
from tidegate_cli.expiry import Horizon, age_in, expired_in, horizon_of
from tidegate_cli.held_sources import ClickHouseSource, DirectorySource
from tidegate_cli.verify_work import _prove
from tidegate_cli.verifying import Saving, Verification

OLD, YOUNG = 10, 0  # hours of 50 and of 30 days ago


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sealed]:
    async with sealed_house(tmp_path_factory.mktemp("expiring")) as house:
        await house.append(chained("old.spool.1", OLD, 10))
        await house.append(chained("young.spool.1", YOUNG, 10))
        await house.ingested()
        await house.seal()
        yield house


@pytest.mark.asyncio(loop_scope="module")
async def test_a_period_takes_in_its_ends_and_every_run_of_records_that_it_touches(house: Sealed) -> None:
    first, last = hour(YOUNG)[0] + 1_000_000, hour(YOUNG)[0] + 10_000_000
    counts = {}
    for name, period in {
        "all": (first, last),
        "first alone": (first, first),
        "last alone": (last, last),
        "before": (first - 60_000_000, first - 1),
        "after": (last + 1, last + 60_000_000),
    }.items():
        counts[name] = (await house.verify(*period)).records
    assert counts == {"all": 10, "first alone": 10, "last alone": 10, "before": 0, "after": 0}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_proof_is_checked_offline_by_a_program_that_knows_only_the_documented_form(house: Sealed) -> None:
    ((call_id,),) = await house.query("SELECT call_id FROM tidegate.events WHERE writer = 'young.spool.1' AND seq = 7")
    analytics = ClickHouseSource(house.consumer.analytics)
    assert await analytics.of_call(call_id)
    proofs = await _prove(house.settings, call_id, house.trust)
    import msgspec

    told = json.loads(msgspec.json.encode(proofs))
    (proof,) = told["proofs"]
    assert independent(proof, house.key.public) == json.loads(proof["root"])["number"]
    for spoiled in (
        proof | {"record": proof["record"].replace("allow", "deny", 1)},
        proof | {"leaf_index": proof["leaf_index"] + 1},
        proof | {"root": proof["root"].replace('"number":', '"number":1')},
        proof | {"path": proof["path"][::-1]},
    ):
        with pytest.raises(Exception):  # noqa: B017  whatever this program stumbles over
            independent(spoiled, house.key.public)


def independent(proof: dict, public: str) -> int:  # type: ignore[type-arg]
    """RFC 6962 read anew: the record up to its leaf's tree, the leaf up to the root's, the root's signature."""
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public + "=" * (-len(public) % 4)))
    key.verify(base64.b64decode(proof["signature"]), b"tidegate audit root v1\n" + proof["root"].encode())
    root, leaf, record = json.loads(proof["root"]), proof["leaf"], json.loads(proof["record"])
    assert record["writer"] == leaf["writer"]
    size, index = leaf["last"] - leaf["first"] + 1, record["seq"] - leaf["first"]
    assert climb(hashlib.sha256(proof["record"].encode()).digest(), index, size, proof["path"]) == leaf["tree"]
    entry = json.dumps(leaf, separators=(",", ":"), ensure_ascii=False).encode()
    assert climb(entry, proof["leaf_index"], root["leaves"], proof["leaf_path"]) == root["tree"]
    return int(root["number"])


def climb(entry: bytes, index: int, size: int, path: list[str]) -> str:
    """Recursively, as the RFC defines a path: the largest power of two below `size` parts the tree."""
    assert 0 <= index < size
    if size == 1:
        assert not path
        return hashlib.sha256(b"\x00" + entry).hexdigest()
    half = 1
    while half * 2 < size:
        half *= 2
    sibling = bytes.fromhex(path[-1])
    if index < half:
        pair = bytes.fromhex(climb(entry, index, half, path[:-1])) + sibling
    else:
        pair = sibling + bytes.fromhex(climb(entry, index - half, size - half, path[:-1]))
    return hashlib.sha256(b"\x01" + pair).hexdigest()


@pytest.mark.asyncio(loop_scope="module")
async def test_what_the_ttl_took_is_expired_and_what_it_left_must_be_whole(
    house: Sealed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    everything = (hour(OLD)[0], hour(YOUNG)[1])
    assert (await house.verify(*everything)).records == 20
    for table, column in (("events_raw", "time"), ("calls_raw", "requested_at")):
        await house.execute(f"ALTER TABLE tidegate.{table} MODIFY TTL toDateTime({column}) + INTERVAL 40 DAY")
        await house.execute(f"OPTIMIZE TABLE tidegate.{table} FINAL")
    assert await house.query("SELECT count() FROM tidegate.events WHERE writer = 'old.spool.1'") == [(0,)]
    directory = tmp_path_factory.mktemp("saved")
    verification = Verification(ClickHouseSource(house.consumer.analytics), house.trust, *everything, now_us())
    roots = await verification.roots()
    verification.saving = Saving(directory, roots, [house.key.public])
    report = await verification.run(roots)
    verification.saving.close()
    assert (report.verdict, report.records, report.expired, report.unproven) == ("whole", 10, 10, 0)
    assert report.expired_why == "expired by TTL: events_raw keeps 40 days"
    offline = Verification(DirectorySource(directory), house.trust, *everything, now_us())
    again = await offline.run(await offline.roots())
    assert (again.verdict, again.records, again.expired) == ("broken", 10, 0), "a copy's own excuse is not believed"
    assert again.claimed_why == report.expired_why
    word_us = report.expired_before_us
    offline = Verification(DirectorySource(directory), house.trust, *everything, now_us(), expired_before_us=word_us)
    again = await offline.run(await offline.roots())
    assert (again.verdict, again.records, again.expired) == ("whole", 10, 10)
    await house.execute(
        "ALTER TABLE tidegate.events_raw DELETE WHERE writer = 'young.spool.1' AND seq = 4 SETTINGS mutations_sync = 2"
    )
    report = await house.verify(*everything)
    assert (report.verdict, report.expired) == ("broken", 10)
    assert [(one.kind, one.writer, one.seq) for one in report.wrong] == [("missing", "young.spool.1", 4)]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_rebuild_wrote_down_as_forgotten_is_told_and_excused_by_who_verifies_alone(house: Sealed) -> None:
    await house.execute("ALTER TABLE tidegate.events_raw REMOVE TTL")
    report = await house.verify(*hour(OLD))
    assert (report.verdict, report.expired, len(report.wrong)) == ("broken", 0, 1)
    await house.execute(f"INSERT INTO tidegate.parameters (name, value) VALUES ('log_begins_us', {hour(OLD)[1]})")
    report = await house.verify(*hour(OLD))
    assert (report.verdict, report.expired, len(report.wrong)) == ("broken", 0, 1)
    assert (report.claimed_by, report.claimed_us) == ("ClickHouse", hour(OLD)[1])
    assert "when ClickHouse was rebuilt" in report.claimed_why
    verification = Verification(
        ClickHouseSource(house.consumer.analytics), house.trust, *hour(OLD), now_us(), expired_before_us=hour(OLD)[1]
    )
    report = await verification.run(await verification.roots())
    assert (report.verdict, report.expired, report.wrong) == ("whole", 10, [])
    assert "the word of who verifies" in report.expired_why


@pytest.mark.asyncio(loop_scope="module")
async def test_an_age_that_wraps_around_the_range_of_times_excuses_nothing(house: Sealed) -> None:
    analytics = house.consumer.analytics
    column = "toDateTime(time)"
    try:
        for age in ("999999999 MONTH", "999999999 YEAR", "40 DAY"):
            await house.execute("SYSTEM STOP TTL MERGES")
            await house.execute(
                f"ALTER TABLE tidegate.events_raw MODIFY TTL {column} + INTERVAL {age} "
                "SETTINGS materialize_ttl_after_modify = 0"
            )
            horizon = await horizon_of(analytics, now_us())
            assert horizon.events_us <= now_us() - 40 * 86_400_000_000 + 5_000_000
            assert (horizon.events_us > 0) is (age == "40 DAY")
        before = await horizon_of(analytics, now_us() - 86_400_000_000)
        assert horizon.events_us - before.events_us >= 86_000_000_000, "by the clock of who asks"
    finally:
        await house.execute("ALTER TABLE tidegate.events_raw REMOVE TTL")
        await house.execute("SYSTEM START TTL MERGES")


@pytest.mark.parametrize(
    ("definition", "age"),
    [
        ("ReplacingMergeTree(x) ORDER BY a TTL toDateTime(time) + toIntervalDay(400) SETTINGS b = 1", ("Day", 400)),
        ("MergeTree ORDER BY a TTL time + toIntervalMonth(13) DELETE SETTINGS b = 1", ("Month", 13)),
        ("MergeTree ORDER BY a TTL toDateTime(time) + toIntervalDay(7) TO VOLUME 'cold' SETTINGS b = 1", None),
        (
            "MergeTree ORDER BY a TTL time + toIntervalDay(7) TO VOLUME 'cold', time + toIntervalYear(2)",
            ("Year", 2),
        ),
        ("MergeTree ORDER BY a TTL time + toIntervalDay(7) DELETE WHERE server = 'x'", None),
        ("MergeTree ORDER BY a SETTINGS b = 1", None),
    ],
)
def test_only_ages_at_which_rows_are_deleted_count(definition: str, age: tuple[str, int] | None) -> None:
    assert age_in(definition) == age


def test_in_a_run_across_the_horizon_only_what_lies_before_the_first_that_is_held_expired() -> None:
    leaf = Leaf(writer="w", first=1, last=10, prev="", head="h", tree="t", first_us=100, last_us=200)
    held = {4, 5, 7, 8, 9, 10}
    assert expired_in(leaf, held, 150) == {1, 2, 3}, "6 is lost"
    assert expired_in(leaf, held, 201) == {1, 2, 3, 6}
    assert expired_in(leaf, held, 100) == set()
    assert expired_in(leaf, set(), 150) == set(), "nothing that is held says how far the horizon came"
    assert not Horizon().excuses("missing", 5)
