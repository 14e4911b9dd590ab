"""Tampering with a real ClickHouse engine: whatever is done to what was sealed, the first wrong record is named."""

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.audit_events import delivered, finding, requested
from tests.parts.kafka import Kafka
from tests.parts.sealed import (
    Sealed,
    chained,
    hour,
    integrity_sealed,
    quick_settings,
    sealed_house,
    sealed_times,
    sealing_on,
    until,
)

from tidegate.audit.history import open_history, seams
from tidegate.audit.merkle import root_of
from tidegate.audit.roots import AuditKey, Root, open_audit_key, tree_of, trusted_audit_keys
from tidegate.chain import Chain, open_event, open_head
from tidegate.events import RootSealed
from tidegate.ids import uuid7
from tidegate.log.kafka import KafkaLog
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.signing import ensure_signing_key
from tidegate.settings import Audit, Roots, Settings
from tidegate.settings import Kafka as KafkaSettings
from tidegate_audit_consumer.roots_file import read_roots, roots_path
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIDEGATE = Path(sys.executable).parent / "tidegate"
CASES = 28


def writer_of(case: int) -> str:
    return f"edge-{case}.spool.1"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sealed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sealed]:
    """Ten records of one writer for every case, each in an hour of its own, all under one root."""
    async with sealed_house(tmp_path_factory.mktemp("sealed")) as house:
        for case in range(CASES):
            await house.append(chained(writer_of(case), case))
        await house.ingested()
        await house.seal()
        yield house


async def rows_of(sealed: Sealed, case: int) -> list[tuple[str, bytes]]:
    """Ids and bytes of the case's records, by number."""
    rows = await sealed.query(
        f"SELECT event_id, hex(raw) FROM tidegate.events WHERE writer = '{writer_of(case)}' ORDER BY seq"
    )
    return [(event_id, bytes.fromhex(raw)) for event_id, raw in rows]


async def change(sealed: Sealed, case: int, seq: int, what: str) -> None:
    await sealed.execute(
        f"ALTER TABLE tidegate.events_raw UPDATE {what} WHERE writer = '{writer_of(case)}' AND seq = {seq} "
        "SETTINGS mutations_sync = 2"
    )


async def delete(sealed: Sealed, case: int, where: str) -> None:
    await erase(sealed, f"writer = '{writer_of(case)}' AND {where}")


async def erase(sealed: Sealed, where: str) -> None:
    await sealed.execute(f"ALTER TABLE tidegate.events_raw DELETE WHERE {where} SETTINGS mutations_sync = 2")


async def insert(sealed: Sealed, records: list[Record], first: int = 0) -> None:
    """Past the log, straight into ClickHouse."""
    hand = delivered(records, first)
    await store(sealed.consumer.analytics, open_batch(hand), hand)


def literal(raw: bytes) -> str:
    return f"unhex('{raw.hex()}')"


async def altered_with_its_hash(sealed: Sealed, case: int) -> None:
    raw = (await rows_of(sealed, case))[3][1].replace(b"alice@example.com", b"mallory@example.x")
    await change(sealed, case, 4, f"raw = {literal(raw)}, hash = '{hashlib.sha256(raw).hexdigest()}'")


async def swapped(sealed: Sealed, case: int) -> None:
    rows = await rows_of(sealed, case)
    await change(sealed, case, 3, f"raw = {literal(rows[5][1])}")
    await change(sealed, case, 6, f"raw = {literal(rows[2][1])}")


async def forked(sealed: Sealed, case: int) -> None:
    rows = await rows_of(sealed, case)
    chain = Chain(writer_of(case), seq=4, prev=hashlib.sha256(rows[3][1]).hexdigest())
    await insert(sealed, [chain.seal(requested(at_us=hour(case)[0] + 5_000_000, decision="deny"))])


async def rewritten(sealed: Sealed, case: int) -> None:
    """From the fourth record on another history, every hash and link of which is right."""
    rows = await rows_of(sealed, case)
    prev = hashlib.sha256(rows[2][1]).hexdigest()
    for seq in range(4, 11):
        fields = msgspec.json.decode(rows[seq - 1][1])
        fields |= {"prev": prev, "reason": "nothing-happened"}
        raw, before = msgspec.json.encode(fields), prev
        prev = hashlib.sha256(raw).hexdigest()
        what = f"raw = {literal(raw)}, prev = '{before}', hash = '{prev}', reason = 'nothing-happened'"
        await change(sealed, case, seq, what)


async def another_link(sealed: Sealed, case: int) -> None:
    raw = (await rows_of(sealed, case))[4][1]
    prev = open_head(raw).prev.encode()
    await change(sealed, case, 5, f"raw = {literal(raw.replace(prev, b'0' * 64, 1))}")


async def smuggled(sealed: Sealed, case: int) -> None:
    """A writer that the log never saw."""
    await insert(sealed, chained("smuggler.spool.1", case, 2))


async def forged_elsewhere(sealed: Sealed, case: int) -> None:
    """A sealed number again, at a time in which nobody looks for it."""
    chain = Chain(writer_of(case - 1), seq=4, prev="0" * 64)
    await insert(sealed, [chain.seal(requested(at_us=hour(case)[0] + 30_000_000))], first=10**9)


async def unchained(sealed: Sealed, case: int) -> None:
    event = requested(at_us=hour(case)[0] + 30_000_000)
    await insert(sealed, [Record("calls", b"k", msgspec.json.encode(event))])


Tampering = Callable[[Sealed, int], Awaitable[None]]
TAMPERINGS: list[tuple[str, Tampering, list[tuple[str, int]], str]] = [
    ("a record is deleted", lambda s, c: delete(s, c, "seq = 4"), [("missing", 4)], "record 4 is missing after event"),
    (
        *("a byte of a record changes", lambda s, c: change(s, c, 4, "raw = replaceOne(raw, 'alice', 'alicf')")),
        *([("altered", 4)], "is not what was sealed"),
    ),
    ("a record and its hash change", altered_with_its_hash, [("altered", 4)], "is not what was sealed"),
    ("two records are swapped", swapped, [("altered", 3), ("altered", 6)], "is not what was sealed"),
    ("a chain is forked", forked, [("fork", 5)], "claims the number 5, which event"),
    (
        *("the tail is dropped", lambda s, c: delete(s, c, "seq >= 8")),
        *([("missing", 8)], "records 8 to 10 are missing after event"),
    ),
    (
        "history is rewritten with a valid chain",
        rewritten,
        [("rewritten", 1)],
        "records 1 to 10 fit each other and not",
    ),
    (
        *("a column alone changes", lambda s, c: change(s, c, 4, "decision = 'deny'")),
        *([("misplaced", 4)], "the columns decision do not say what its bytes say"),
    ),
    (
        *("records in a row are deleted", lambda s, c: delete(s, c, "seq BETWEEN 4 AND 6")),
        *([("missing", 4)], "records 4 to 6 are missing after event"),
    ),
    ("a record names another before it", another_link, [("altered", 5)], "is not what was sealed"),
    ("a writer is invented", smuggled, [("unsealed", 1), ("unsealed", 2)], "it was not on the log"),
    ("all records of a writer are deleted", lambda s, c: delete(s, c, "1"), [("missing", 1)], "records 1 to 10 are"),
    (
        *("a record's time changes", lambda s, c: change(s, c, 4, "time = time + 60")),
        *([("misplaced", 4)], "the columns time do not say"),
    ),
    (
        *("a record and its successor's link change", lambda s, c: change(s, c, 9, "raw = 'not a record'")),
        *([("altered", 9)], "is not what was sealed"),
    ),
    (
        "a sealed number is used at another time",
        forged_elsewhere,
        [("fork", 5)],
        "under which another record was sealed",
    ),
    ("a record belongs to no chain", unchained, [("unchained", 0)], "belongs to no chain"),
]


@pytest.mark.parametrize(("case", "tampering"), list(enumerate(TAMPERINGS)), ids=[one[0] for one in TAMPERINGS])
async def test_tampering_is_found_and_the_first_wrong_record_is_named(
    sealed: Sealed, case: int, tampering: tuple[str, Tampering, list[tuple[str, int]], str]
) -> None:
    _, tamper, expected, words = tampering
    before = await sealed.verify(*hour(case))
    assert (before.verdict, before.wrong, before.problems) == ("whole", [], [])
    assert before.records >= 10
    rows = await rows_of(sealed, case)
    await tamper(sealed, case)
    report = await sealed.verify(*hour(case))
    assert report.verdict == "broken"
    assert [(one.kind, one.seq) for one in report.wrong] == expected
    assert words in report.wrong[0].sentence
    assert report.problems == []
    named = report.wrong[0].id
    if named and report.wrong[0].kind in ("altered", "misplaced"):
        assert named == rows[report.wrong[0].seq - 1][0]


ROWS: list[tuple[str, str, str]] = [
    (
        *("a row changes", "UPDATE decision = 'deny' WHERE server = 'git' AND call_id = {id}"),
        "in `calls` does not say what its records say: decision",
    ),
    ("a row is deleted", "DELETE WHERE call_id = {id}", "has no row in `calls`"),
    (
        *("findings go", "UPDATE arguments_findings = [], arguments_capture = 'none' WHERE call_id = {id}"),
        "does not say what its records say: arguments_capture, arguments_findings",
    ),
    (
        *("somebody is framed", "UPDATE login = 'zoe@framed', arguments = '{{}}' WHERE call_id = {id}"),
        "does not say what its records say: login, arguments",
    ),
    (
        *("a box is put in", "UPDATE request_kid = 'k', request_box = repeat('b', 28) WHERE call_id = {id}"),
        "does not say what its records say: request_kid, request_box",
    ),
]


@pytest.mark.parametrize(("at", "tampering"), list(enumerate(ROWS)), ids=[one[0] for one in ROWS])
async def test_rows_of_calls_that_do_not_say_what_their_records_say_are_found(
    sealed: Sealed, at: int, tampering: tuple[str, str, str]
) -> None:
    _, what, words = tampering
    case = CASES - 2 - 2 * at
    assert (await sealed.verify(*hour(case))).rows == []
    call_id = msgspec.json.decode((await rows_of(sealed, case))[5][1])["call_id"]
    await sealed.execute(f"ALTER TABLE tidegate.calls_raw {what.format(id=repr(call_id))} SETTINGS mutations_sync = 2")
    report = await sealed.verify(*hour(case))
    assert (report.verdict, report.wrong, report.records) == ("broken", [], 10)
    (row,) = report.rows
    assert f"call {call_id} " in row.sentence
    assert words in row.sentence


async def test_other_hours_are_whole_while_one_is_not(sealed: Sealed) -> None:
    await delete(sealed, CASES - 1, "seq = 2")
    assert (await sealed.verify(*hour(CASES - 1))).verdict == "broken"
    untouched = await sealed.verify(*hour(CASES - 5))
    assert (untouched.verdict, untouched.records) == ("whole", 10)


def resigned(event: RootSealed, key: AuditKey, **changed: Any) -> RootSealed:
    """The root with other content, signed by this key."""
    root = msgspec.structs.replace(msgspec.json.decode(event.root, type=Root), **changed)
    signed = key.sign(root)
    return msgspec.structs.replace(
        event, root=msgspec.Raw(signed.root), signature=signed.signature, key_id=signed.key_id
    )


async def test_history_rewritten_together_with_its_root_needs_the_audit_key(sealed: Sealed, tmp_path: Path) -> None:
    case = CASES - 3
    genuine = sealed.published()
    await rewritten(sealed, case)
    rows = await rows_of(sealed, case)
    hashes = [hashlib.sha256(raw).digest() for _, raw in rows]
    forged_leaves = tuple(
        msgspec.structs.replace(leaf, head=hashes[-1].hex(), tree=root_of(hashes).hex())
        if leaf.writer == writer_of(case)
        else leaf
        for leaf in genuine[0].leaves
    )
    thief = AuditKey(ensure_signing_key(tmp_path / "thief.pem").private)
    forged = msgspec.structs.replace(genuine[0], leaves=forged_leaves)
    history = open_history([forged], sealed.trust)
    assert [one.code for one in history.problems] == ["root-leaves-changed"]
    signed = resigned(forged, thief, tree=tree_of(forged_leaves))
    assert [one.code for one in open_history([signed], sealed.trust).problems] == ["root-key-unknown"]
    stolen_id = msgspec.structs.replace(signed, key_id=genuine[0].key_id)
    assert [one.code for one in open_history([stolen_id], sealed.trust).problems] == ["root-signature-invalid"]
    report = await sealed.verify(*hour(case))
    assert (report.verdict, report.first_wrong and report.first_wrong.kind) == ("broken", "rewritten")


async def test_a_root_that_was_left_out_or_made_twice_is_missed(sealed: Sealed) -> None:
    while len(sealed.published()) < 3:
        await sealed.seal()
    roots = sorted({root.number: root for root in sealed.published()}.values(), key=lambda root: root.number)
    assert open_history(roots, sealed.trust).problems == []
    assert open_history([*roots, *roots], sealed.trust).problems == [], "the same root twice is no news"
    (gap,) = open_history([*roots[:1], *roots[2:]], sealed.trust).problems
    assert (gap.code, gap.number) == ("root-missing", 3)
    twin = resigned(roots[1], sealed.key, sealed_us=1)
    problems = open_history([roots[0], roots[1], twin], sealed.trust).problems
    assert [(one.code, one.number) for one in problems] == [("root-forked", 2)]


async def test_roots_that_were_deleted_from_clickhouse_are_believed_from_the_file(sealed: Sealed) -> None:
    published = sealed.published()
    rows = await sealed.query("SELECT number FROM tidegate.roots ORDER BY number")
    await sealed.execute("CREATE TABLE tidegate.roots_before AS tidegate.roots")
    await sealed.execute("INSERT INTO tidegate.roots_before SELECT * FROM tidegate.roots")
    await sealed.execute("TRUNCATE TABLE tidegate.roots")
    try:
        without = await sealed.verify(*hour(CASES - 5))
        assert (without.verdict, without.pending) == ("unproven", 10)
        report = await sealed.verify(*hour(CASES - 5), roots=published)
        assert (report.verdict, report.records, report.roots) == ("whole", 10, len(rows))
    finally:
        await sealed.execute("INSERT INTO tidegate.roots SELECT * FROM tidegate.roots_before")
        await sealed.execute("DROP TABLE tidegate.roots_before")


async def test_a_late_record_is_pending_until_the_next_root_covers_it(sealed: Sealed) -> None:
    number = 100
    chain = Chain("late.spool.1")
    await sealed.append(chained("late.spool.1", number, 5, chain))
    await sealed.seal()
    assert (await sealed.verify(*hour(number))).records == 5
    await sealed.append(chained("late.spool.1", number, 3, chain))
    await sealed.ingested()
    report = await sealed.verify(*hour(number))
    assert (report.verdict, report.records, report.pending, report.overdue) == ("unproven", 5, 3, 3)
    await sealed.seal()
    report = await sealed.verify(*hour(number))
    assert (report.verdict, report.records, report.pending) == ("whole", 8, 0)


async def test_a_finding_that_was_said_twice_is_held_once_and_counts_as_whole(sealed: Sealed) -> None:
    number = 101
    for detector in ("detector.a", "detector.b"):
        own = {"writer": detector, "seq": 1, "prev": "", "time_us": hour(number)[0] + 1_000_000}
        await sealed.append([Record("detections", b"k", finding("0192f0c1-0000-8000-8000-00000000abcd", **own))])
    await sealed.ingested()
    await sealed.seal()
    report = await sealed.verify(*hour(number))
    assert (report.verdict, report.wrong, report.records) == ("whole", [], 2)
    await erase(sealed, "writer IN ('detector.a', 'detector.b')")
    report = await sealed.verify(*hour(number))
    assert [(one.kind, one.writer) for one in report.wrong] == [("missing", "detector.a"), ("missing", "detector.b")]


def root_of_writer(sealed: Sealed, writer: str) -> int:
    return min(root.number for root in sealed.published() if writer in {leaf.writer for leaf in root.leaves})


async def test_gaps_forks_and_rewrites_on_the_log_are_findings_within_moments(sealed: Sealed) -> None:
    number = 102
    whole = chained("gapped.spool.1", number, 6)
    await sealed.append([*whole[:3], *whole[4:]])
    chain = Chain("forked.spool.1")
    one = chained("forked.spool.1", number, 3, chain)
    fork = Chain("forked.spool.1", seq=2, prev=open_head(one[2].value or b"").prev)
    await sealed.append([*one, *chained("", number, 1, fork)])
    event = open_event(chained("rewritten.spool.1", number, 1)[0].value or b"")
    bare = msgspec.structs.replace(event, writer="", seq=0, prev="")
    other = msgspec.structs.replace(bare, reason="another")
    await sealed.append([Chain("rewritten.spool.1").seal(bare), Chain("rewritten.spool.1").seal(other)])
    await sealed.ingested()
    async with sealed.sealing() as integrity:
        await integrity_sealed(integrity, 1)
        broken = root_of_writer(sealed, "gapped.spool.1")
        await until(lambda: integrity.checker.checked.get(broken) == "broken")
    await sealed.ingested()
    titles = await sealed.query(
        "SELECT title, message FROM tidegate.findings WHERE rule = 'log-integrity' ORDER BY title, message"
    )
    text = "\n".join(f"{title}: {message}" for title, message in titles)
    assert "A chain has a gap: gapped.spool.1: the log never held the numbers 4 of this writer" in text
    assert "Two records have one place in a chain: forked.spool.1: " in text
    assert "A record was written again with different content: rewritten.spool.1: " in text
    assert "altered" not in "".join(line for line in text.splitlines() if "rewritten.spool.1" in line)
    ((verdict, wrong, problem),) = await sealed.query(
        f"SELECT verdict, wrong, problem FROM tidegate.integrity WHERE number = {broken}"
    )
    assert (verdict, problem) != ("whole", "")
    assert wrong > 0
    report = await sealed.verify(*hour(number))
    assert {(one.kind, one.writer, one.seq) for one in report.wrong} >= {
        ("gap", "gapped.spool.1", 4),
        ("fork", "forked.spool.1", 3),
        ("rewrite", "rewritten.spool.1", 1),
    }


async def test_the_check_after_each_root_finds_what_clickhouse_lost_and_raises_it(sealed: Sealed) -> None:
    number = 103
    await sealed.append(chained("checked.spool.1", number, 10))
    await sealed.ingested()
    await erase(sealed, "writer = 'checked.spool.1' AND seq = 7")
    async with sealed.sealing() as integrity:
        await integrity_sealed(integrity, 1)
        root = root_of_writer(sealed, "checked.spool.1")
        await until(lambda: integrity.checker.checked.get(root) == "broken")
    await sealed.ingested()
    row = await sealed.query(
        f"SELECT verdict, wrong, problem, writer, seq FROM tidegate.integrity WHERE number = {root}"
    )
    assert row == [("broken", 1, "missing", "checked.spool.1", 7)]
    raised = await sealed.query(
        "SELECT severity FROM tidegate.findings WHERE message LIKE 'checked.spool.1: record 7 %'"
    )
    assert raised == [("critical",)]


async def test_a_root_that_was_spoiled_in_clickhouse_is_told_and_stops_nobody(sealed: Sealed) -> None:
    await sealed.seal()
    number = max(one for (one,) in await sealed.query("SELECT number FROM tidegate.roots"))
    ((raw,),) = await sealed.query(f"SELECT hex(raw) FROM tidegate.roots WHERE number = {number}")
    spoil = "ALTER TABLE tidegate.roots UPDATE raw = {} WHERE number = {} SETTINGS mutations_sync = 2"
    await sealed.execute(spoil.format("'nothing'", number))
    async with sealed.sealing() as integrity:
        await until(lambda: integrity.checker.checked.get(number) == "broken")
        await until(lambda: integrity.checker.checked.get(number + 1) == "whole")
    await sealed.execute(spoil.format(f"unhex('{raw}')", number))


async def test_two_regions_writers_are_proven_under_two_series_of_roots(sealed: Sealed, tmp_path: Path) -> None:
    number = 104
    await sealed.append(chained("eu-edge.spool.1", number, 10))
    await sealed.ingested()
    await sealed.seal()
    settings, log = quick_settings(tmp_path, region="us"), SqliteLog(tmp_path / "log.db")
    records = chained("us-edge.spool.1", number, 10)
    await log.append(records)
    async with sealing_on(settings, log) as sealer:
        await sealed_times(sealer, 1)
    await log.close()
    american = list(read_roots(roots_path(settings)))
    key = open_audit_key(settings)
    assert key is not None
    trust = {**sealed.trust, **trusted_audit_keys([key.public])}
    report = await sealed.verify(*hour(number), roots=american, trust=trust)
    assert (report.verdict, [(one.kind, one.writer) for one in report.wrong]) == (
        *("broken", [("missing", "us-edge.spool.1")]),
    ), "the other region's records are not here yet"
    await insert(sealed, records, first=10**6)
    report = await sealed.verify(*hour(number), roots=american, trust=trust)
    assert (report.verdict, report.records, report.latest.keys()) == ("whole", 20, {"local", "us"})
    await erase(sealed, "writer = 'us-edge.spool.1' AND seq = 3")
    report = await sealed.verify(*hour(number), roots=american, trust=trust)
    assert [(one.writer, one.seq) for one in report.wrong] == [("us-edge.spool.1", 3)]


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.parts.sealed import quick_settings, sealing_on
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.signing import ensure_signing_key
from tidegate.settings import Audit, Roots, Settings
from tidegate.settings import Kafka as KafkaSettings
from tidegate_audit_consumer import journal, sealing
from tidegate_audit_consumer.roots_file import roots_path

async def hang(*given, **named):
    print("here", flush=True)
    await asyncio.Event().wait()

async def half(self, value):
    path = roots_path(self._settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value[: len(value) // 2])
    await hang()

async def main():
    settings, log = quick_settings(Path(sys.argv[1])), SqliteLog(sys.argv[1] + "/log.db")
    await log.prepare()
    match sys.argv[2]:
        case "append":
            journal.Journal.add = hang
        case "torn":
            sealing.Sealer._publish = half
        case "settle":
            sealing._settle = hang
    async with sealing_on(settings, log):
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("killed_at", ["append", "torn", "settle"])
async def test_a_sealer_that_is_killed_is_continued_by_the_next_without_a_gap(tmp_path: Path, killed_at: str) -> None:
    log = SqliteLog(tmp_path / "log.db")
    await log.append(chained("edge.spool.1", 0, 50))
    await log.close()
    root = Path(__file__).resolve().parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(tmp_path), killed_at),
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
        env=dict(os.environ) | {"PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"here\n"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    log = SqliteLog(tmp_path / "log.db")
    settings = quick_settings(tmp_path)
    async with sealing_on(settings, log) as sealer:
        await sealed_times(sealer, 2)
    await log.close()
    published = list(read_roots(roots_path(settings)))
    roots = {one.number: one for one in published}
    assert sorted(roots) == list(range(1, max(roots) + 1)), "the file has every root"
    key = open_audit_key(settings)
    assert key is not None
    assert open_history(published, trusted_audit_keys([key.public])).problems == []
    covered = [leaf for one in roots.values() for leaf in one.leaves if leaf.writer == "edge.spool.1"]
    assert [(leaf.first, leaf.last) for leaf in covered] == [(1, 50)], "every record is sealed, and none twice"


async def cli(*arguments: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        TIDEGATE, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


def at(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()


async def test_the_command_verifies_saves_and_proves_and_says_so_offline(sealed: Sealed, tmp_path: Path) -> None:
    number = 105
    records = chained("shown.spool.1", number, 10)
    await sealed.append(records)
    await sealed.ingested()
    await sealed.seal()
    config = Path(sealed.settings.root) / "tidegate.yaml"
    config.write_text("data: data\n")
    period = ("--from", at(hour(number)[0]), "--to", at(hour(number)[1]))
    code, out, err = await cli("verify", "--config", config, *period, "--save", tmp_path / "saved", "--json")
    assert (code, err) == (0, "")
    told = msgspec.json.decode(out)
    assert (told["verdict"], told["records"], told["first_wrong"]) == ("whole", 10, None)

    call_id = msgspec.json.decode(records[4].value or b"")["call_id"]
    proof = tmp_path / "proof.json"
    code, out, err = await cli("prove", call_id, "--config", config, "--out", proof)
    assert (code, "Proof of 1 record in" in err) == (0, True), err
    key = sealed.key.public
    code, out, err = await cli("verify", "--proof", proof, "--key", key, "--config", tmp_path / "none.yaml")
    assert (code, "Proven: call.requested.v1" in out) == (0, True), out + err
    proof.write_text(proof.read_text().replace('\\"decision\\":\\"allow\\"', '\\"decision\\":\\"deny\\"'))
    code, out, err = await cli("verify", "--proof", proof, "--key", key, "--config", tmp_path / "none.yaml")
    assert (code, "the record is not the one that was sealed" in out) == (1, True), out + err

    saved = ("verify", "--dir", tmp_path / "saved", "--key", key, "--config", tmp_path / "none.yaml", *period)
    code, out, err = await cli(*saved)
    assert (code, "Whole: 10 records are what was sealed" in out) == (0, True), out + err
    events = tmp_path / "saved" / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join(line for line in lines if line.rstrip(b"\n") != records[6].value))
    code, out, err = await cli(*saved)
    assert (code, "record 7 is missing after event" in out) == (1, True), out + err

    await sealed.execute(
        "ALTER TABLE tidegate.events_raw UPDATE raw = replaceOne(raw, 'alice', 'malory') "
        "WHERE writer = 'shown.spool.1' AND seq = 2 SETTINGS mutations_sync = 2"
    )
    code, out, err = await cli("verify", "--config", config, *period)
    assert (code, "altered · shown.spool.1 · record 2" in out) == (1, True), out + err


@pytest.mark.kafka
async def test_on_kafka_one_consumer_seals_and_another_goes_on_when_it_ends(kafka: Kafka, tmp_path: Path) -> None:
    topics = KafkaSettings(prefix=f"roots{uuid7()}.", partitions=3, replication=1, min_insync=1)
    key_file = tmp_path / "audit.pem"
    ensure_signing_key(key_file)
    async with AsyncExitStack() as stack:
        parts = []
        for name in ("a", "b"):
            roots = Roots(every_s=0.3, key_file=str(key_file), file=str(tmp_path / f"{name}.jsonl"))
            settings = Settings(log=f"kafka://{kafka.bootstrap}", kafka=topics, audit=Audit(roots=roots))
            log = KafkaLog(settings)
            stack.push_async_callback(log.close)
            await log.prepare()
            parts.append((settings, log))
        records = [one._replace(key=b"k%d" % (at % 7)) for at, one in enumerate(chained("edge.spool.1", 0, 60))]
        await parts[0][1].append(records[:40])
        async with sealing_on(*parts[0]) as first:
            await sealed_times(first, 2)
            async with sealing_on(*parts[1]) as second:
                await until(lambda: first.sealed + second.sealed >= 4)  # Kafka may have moved the work already
                first.stopping.set()
                await until(lambda: not first.held)
                await parts[0][1].append(records[40:])
                await sealed_times(second, second.sealed + 2)
    published = [one for name in ("a", "b") for one in read_roots(tmp_path / f"{name}.jsonl")]
    key = open_audit_key(parts[0][0])
    assert key is not None
    history = open_history(published, trusted_audit_keys([key.public]))
    assert history.problems == []
    assert history.covers("edge.spool.1") == [(1, 60)]
    assert seams(history.leaves["edge.spool.1"]) == []
    at_b = {root.number for root in read_roots(tmp_path / "b.jsonl")}
    assert at_b == set(range(1, max(at_b) + 1)), "the second file has what was sealed elsewhere, too"
