"""A short chaos: faults of all kinds, in an order from a seed, and the books balance. `make chaos` runs the long one.

The rest shows that its instruments tell the truth: links, clocks, and books that do not balance.
"""

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.chaos.balance import Books, Logged, Row, compare_calls, compare_records
from tests.chaos.clocks import Clock, compiled
from tests.chaos.faults import BY_NAME, drawn
from tests.chaos.links import TOO_BUSY, running_links
from tests.chaos.load import Call, Tally, message_in
from tests.chaos.report import Harmed, Outcome, page, plotted, show, write_page
from tests.chaos.run import chaos
from tests.chaos.stage import Stage, running_stage
from tests.parts.asking import exchange
from tests.parts.audit_events import calls

from tidegate.audit.holdings import Wrong
from tidegate.events import RootChecked
from tidegate.ids import now_us
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_audit_consumer.journal import Journal

SEED = 7
RATE = 20.0
PACE = 0.3
LONG = {"edge-ended", "edge-without-kafka", "kafka-restarted"}  # starts take their time, and others start the same


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with running_stage(tmp_path / "chaos") as found:
        yield found


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.timeout(420)
def test_after_faults_of_all_kinds_the_books_balance_in_both_directions(stage: Stage) -> None:
    outcome = Outcome(SEED, 0.0, RATE)
    console = Console(force_terminal=False, width=160)
    names = [name for name in BY_NAME if name not in LONG]
    chaos(stage, outcome, names, console, rounds=1, pace=PACE)
    show(outcome, console)
    assert outcome.wrong == []
    assert {one.name for one in outcome.faults} == {name for name in names if BY_NAME[name].is_possible(stage)}
    assert outcome.tally.well() > 100
    assert {"ok", "tool-error", "denied"} <= set(outcome.tally.heard())


def wrong(books: Books) -> set[str]:
    return {one.what for one in books.checks if one.found}


def books_of(seen: dict[str, int], rows: list[Row], told: dict[str, Call]) -> Books:
    books = Books()
    compare_calls(books, seen, rows, Tally(told))
    return books


WELL = Row("a", "1", "ok", "spool", "edge-0")
OK = Call("ok", "spool", "edge-0", 1.0)


@pytest.mark.parametrize(
    ("seen", "rows", "told", "what"),
    [
        ({"a": 1}, [], {}, {"seen by a server, and no record"}),
        ({"a": 2}, [WELL], {"a": OK}, {"seen by a server twice"}),
        ({"a": 1}, [WELL, WELL._replace(call_id="2")], {"a": OK}, {"two rows for one call"}),
        ({"a": 1}, [WELL], {}, {"a row that nobody called for"}),
        ({}, [], {"a": OK}, {"answered, and no record"}),
        ({}, [WELL], {"a": OK}, {"recorded as carried out, and never seen"}),
        (
            *({"a": 1}, [WELL._replace(status="denied")], {"a": OK._replace(heard="no answer")}),
            {"recorded as refused, and seen"},
        ),
        ({"a": 1}, [WELL._replace(status="unknown")], {"a": OK}, {"told one thing, recorded another"}),
        ({"a": 1}, [WELL], {"a": OK}, set()),
        ({}, [WELL._replace(status="pending")], {"a": OK._replace(heard="refused")}, set()),
        ({}, [WELL._replace(status="upstream-failed")], {"a": OK._replace(heard="refused")}, set()),
        ({"a": 1}, [WELL], {"a": OK._replace(heard="no answer")}, set()),
        ({}, [], {"a": OK._replace(heard="no answer")}, set()),
        ({}, [WELL._replace(nonce="", status="cancelled")], {"a": OK._replace(heard="no answer")}, set()),
        (
            *({"a": 1}, [WELL._replace(nonce="", status="cancelled")], {"a": OK._replace(heard="no answer")}),
            {"seen by a server, and no record"},
        ),
    ],
)
def test_books_that_do_not_balance_are_told_by_what_is_wrong(
    seen: dict[str, int], rows: list[Row], told: dict[str, Call], what: set[str]
) -> None:
    assert wrong(books_of(seen, rows, told)) == what


def breaks_of(records: list[Logged]) -> set[str]:
    books = Books()
    compare_records(books, records)
    return wrong(books)


def test_gaps_forks_and_disorder_on_the_log_are_told() -> None:
    records = [Logged("calls", record.value) for record in calls(3) if record.value is not None]
    assert breaks_of(records) == breaks_of([*records, *records]) == set()
    assert breaks_of([*records[:2], *records[3:]]) == {"gaps and broken links in chains"}
    assert breaks_of([records[1], records[0], *records[2:]]) == {"out of order for its writer and key"}
    forged = records[3]._replace(value=records[3].value.replace(b"acme", b"evil"))
    assert "two records with one number" in breaks_of([*records, forged])
    assert breaks_of([*records, Logged("calls", b"{}")]) == {"records of no chain"}


async def test_what_a_sealer_found_stands_in_the_chain_of_its_roots(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    await log.prepare()
    journal = Journal(Settings(), log, "local", now_us)
    await journal.report([Wrong("gap", "edge-0.spool.1", 3, "", "the log never held it")])
    verdict = RootChecked(**journal.common(), sealer="local", number=1, digest="", verdict="broken", events=0, wrong=1)
    await journal.add(verdict)
    subscription = await log.follow(("integrity", "detections"))
    records = [Logged(one.topic, one.value or b"") for one in await subscription.poll(10, 1.0)]
    await log.close()
    assert sorted(one.topic for one in records) == ["detections", "integrity"]
    assert breaks_of(records) == set()
    assert breaks_of([one for one in records if one.topic == "integrity"]) == {"gaps and broken links in chains"}


def test_an_order_follows_from_its_seed_and_every_round_has_every_fault_once() -> None:
    names = list(BY_NAME)
    orders = [[one.name for one in islice(drawn(names, random.Random(seed)), 3 * len(names))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    for start in range(0, 3 * len(names), len(names)):
        assert sorted(orders[0][start : start + len(names)]) == sorted(names)


def test_a_link_carries_slows_holds_breaks_refuses_and_is_healed() -> None:
    with running_links() as links, socket.create_server(("127.0.0.1", 0)) as server:
        link = links.open("link", server.getsockname)
        near = socket.create_connection(("127.0.0.1", link.port), timeout=10)
        far, _ = server.accept()
        near.sendall(b"a")
        assert far.recv(1) == b"a"
        link.slow(0.2)
        began_s = time.monotonic()
        far.sendall(b"b")
        assert near.recv(1) == b"b"
        assert time.monotonic() - began_s >= 0.2
        link.hold()
        near.sendall(b"c")
        far.settimeout(0.3)
        with pytest.raises(TimeoutError):
            far.recv(1)
        link.heal()
        far.settimeout(10)
        assert far.recv(1) == b"c"
        link.cut()
        with pytest.raises(ConnectionError):
            near.recv(1)
        link.refuse()
        assert exchange("GET", f"http://127.0.0.1:{link.port}/", {}) == (500, TOO_BUSY)
        link.heal()
        again = socket.create_connection(("127.0.0.1", link.port), timeout=10)
        again.sendall(b"d")
        carried, _ = server.accept()
        assert carried.recv(1) == b"d"
        for one in (near, far, again, carried):
            one.close()


def test_a_clock_moves_the_wall_clock_of_its_process_alone(tmp_path: Path) -> None:
    library = compiled(tmp_path)
    if library is None:
        pytest.skip("no C compiler is installed")
    clock = Clock(library, tmp_path / "clock")
    asked = "import datetime, time; print(time.time(), time.time_ns() / 1e9, datetime.datetime.now().timestamp())"
    for ahead_s in (-900.5, 0.0, 900.25):
        clock.set(ahead_s)
        told = subprocess.run([sys.executable, "-c", asked], env=clock.environment, capture_output=True, check=True)
        for word in told.stdout.split():
            assert abs(float(word) - time.time() - ahead_s) < 20


def test_an_answer_is_found_plain_and_in_a_stream_and_missed_where_it_broke_off() -> None:
    plain = b'{"jsonrpc": "2.0", "id": 7, "result": {}}'
    assert message_in(plain, 7)["id"] == 7
    assert message_in(b": wait\n\ndata: \n\ndata: " + plain + b"\n\n", 7)["id"] == 7
    assert message_in(b": wait\n\n", 7) == message_in(b"", 7) == {}


def test_a_run_is_told_as_a_page_and_a_picture(tmp_path: Path) -> None:
    told = {"a": OK, "b": OK._replace(heard="refused", at_s=9.5)}
    faults = [Harmed("clock-jump", "edge-0 by +30 s", 1.0, 4.0), Harmed("clock-jump", "edge-0 by -9 s", 6.0, 9.0)]
    outcome = Outcome(3, 10.0, 1.0, faults, tally=Tally(told))
    outcome.books.check("lost", ["x"])
    assert outcome.wrong == ["lost: 1: x"]
    file = tmp_path / "chaos.md"
    file.write_text("before\n<!-- chaos -->\nold\n<!-- /chaos -->\nafter\n")
    for _ in range(2):
        write_page(outcome, file)
        assert file.read_text() == f"before\n<!-- chaos -->\n{page(outcome)}<!-- /chaos -->\nafter\n"
    assert "| 2 | 6 | edge-0 2× |" in page(outcome)
    picture = ElementTree.fromstring(plotted(outcome))
    assert len([one for one in picture if one.tag.endswith("rect")]) == 1 + len(faults)
