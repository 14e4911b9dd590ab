"""What an edge keeps of the log on its disk: written before it is obeyed, believed while whole, its own and young."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import LogUnavailable
from tidegate.events import AnyEvent, ToolApproved, ToolDefined, ToolHeld, ToolWithdrawn
from tidegate.ids import now_us
from tidegate.limits import Limits
from tidegate.log.port import Delivered
from tidegate.policy.trusting import Trusting
from tidegate.secrets import ClusterSecrets
from tidegate.settings import Edge as EdgeSettings
from tidegate.settings import Kafka, Settings
from tidegate_edge import kept_state, remembering
from tidegate_edge.kept_state import MAGIC, STATE, Definitions, KeptState, NotUsable, Recalled
from tidegate_edge.remembering import Remembering

KEY = ClusterSecrets.generate().kept_key()
NOW = 1_800_000_000_000_000
HOUR = 3_600_000_000
AWAY = LogUnavailable("Kafka is away.")


def settings(root: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {"log": "kafka://127.0.0.1:9", "root": str(root), "tenant": "acme", **more}
    return Settings(**given)


def defined(tool: str, what: str, at_us: int) -> ToolDefined:
    definition = msgspec.Raw(json.dumps({"name": tool, "description": what}).encode())
    return ToolDefined(**stamp(at_us), server="up", tool=tool, digest=what, definition=definition)


def stamp(at_us: int) -> dict[str, Any]:
    return {"id": f"{at_us:032x}", "time_us": at_us, "tenant": "acme", "region": "local"}


def definitions(*events: AnyEvent) -> Definitions:
    return Definitions(folded(*events).snapshot(), ((("up", "prompt", "greet"), "d1"),))


def folded(*events: AnyEvent) -> Trusting:
    trusting = Trusting("acme")
    for event in events:
        trusting.apply(event)
    return trusting


def kept(root: Path, **more: Any) -> KeptState:
    """Something is kept there, as of NOW."""
    state = KeptState(settings(root, **more), KEY)
    state.keep(NOW, {b"acme|q1": b"stopped"}, definitions(defined("t", "first", 1)))
    state.sync()
    return state


def test_what_was_kept_is_what_is_recalled(tmp_path: Path) -> None:
    kept(tmp_path)
    found = KeptState(settings(tmp_path), KEY).recall(NOW + HOUR)
    assert isinstance(found, Recalled)
    assert (found.heard_us, found.quarantines) == (NOW, {b"acme|q1": b"stopped"})
    assert found.definitions == definitions(defined("t", "first", 1))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "data" / "known").iterdir()} == {0o600}


def test_definitions_stay_where_quarantines_alone_are_kept_again_and_old_files_go(tmp_path: Path) -> None:
    state = kept(tmp_path)
    state.keep(NOW + 1, {}, None)
    state.keep(NOW + 2, {b"acme|q2": b"x"}, definitions(defined("t", "second", 1)))
    state.keep(NOW + 3, {}, None)
    found = KeptState(settings(tmp_path), KEY).recall(NOW + 4)
    assert isinstance(found, Recalled)
    assert (found.heard_us, dict(found.quarantines)) == (NOW + 3, {})
    assert found.definitions == definitions(defined("t", "second", 1))
    assert len(list(state.directory.iterdir())) == 2


def catalog_of(directory: Path) -> Path:
    (found,) = directory.glob("catalog-*")
    return found


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def another_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(MAGIC, MAGIC.replace(b"3", b"4")))


def swapped(path: Path) -> None:
    """A file that is sealed well, and is another one."""
    path.write_bytes((catalog_of(path.parent) if path.name == STATE else path.parent / STATE).read_bytes())


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def endless(path: Path) -> None:
    """All of it is there, and then nothing for a tebibyte."""
    os.truncate(path, 1 << 40)


HARM: list[Callable[[Path], None]] = [flipped, cut, another_version, swapped, Path.unlink, lambda path: cut_to(path, 0)]
HARM += [a_pipe, a_directory, a_link, endless]


def cut_to(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("which", ["state", "catalog"])
def test_what_is_not_whole_and_unaltered_counts_as_absent(
    tmp_path: Path, harm: Callable[[Path], None], which: str
) -> None:
    state = kept(tmp_path)
    harm(state.directory / STATE if which == "state" else catalog_of(state.directory))
    found = KeptState(settings(tmp_path), KEY).recall(NOW)
    assert isinstance(found, NotUsable)
    assert "Start it when Kafka is back" in found.sentence


def test_it_serves_no_other_cluster_no_other_log_and_no_other_edge(tmp_path: Path) -> None:
    kept(tmp_path)
    others: tuple[dict[str, Any], ...] = (
        {"log": "kafka://127.0.0.1:10"},
        {"tenant": "other"},
        {"kafka": Kafka(prefix="other.")},
    )
    others += ({"region": "eu"}, {"edge": EdgeSettings(id="edge-2")}, {"listen": "127.0.0.1:8099"})
    for other in others:
        found = KeptState(settings(tmp_path, **other), KEY).recall(NOW)
        assert isinstance(found, NotUsable), other
        assert "by another edge, or with other settings of tenant, region, edge.id, log or kafka" in found.sentence
    stranger = KeptState(settings(tmp_path), ClusterSecrets.generate().kept_key()).recall(NOW)
    assert isinstance(stranger, NotUsable)
    assert "other cluster secrets" in stranger.sentence


@pytest.mark.parametrize(("now", "usable"), [(NOW + HOUR, True), (NOW + HOUR + 1, False), (NOW - HOUR - 1, False)])
def test_it_is_believed_up_to_the_age_that_is_set_and_not_where_the_clock_was_set_back(
    tmp_path: Path, now: int, usable: bool
) -> None:
    state = kept(tmp_path, limits=Limits(kept_state_s=3_600))
    found = state.recall(now)
    assert isinstance(found, Recalled) is usable
    if isinstance(found, NotUsable):
        assert "2027-01-15T08:00:00+00:00" in found.sentence
        assert "limits.kept_state_s" in found.sentence


_event = st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 9_000_000))


def event_of(drawn: tuple[int, str, str, int]) -> AnyEvent:
    kind, tool, digest, at_us = drawn
    about: dict[str, Any] = {**stamp(at_us), "server": "up", "tool": tool}
    return (
        defined(tool, digest, at_us),
        ToolWithdrawn(**about, previous=""),
        ToolApproved(**about, digest=digest, actor="root"),
        ToolHeld(**about, digest=digest, trusted="", action="hold", rank="new", changes=(), edge="e"),
    )[kind]


@given(st.lists(_event, max_size=12), st.integers(0, 12))
def test_a_fold_begun_from_what_was_kept_ends_where_one_that_never_stopped_does(
    drawn: list[tuple[int, str, str, int]], at: int
) -> None:
    events = [event_of(one) for one in drawn]
    before, after = folded(*events[:at]), folded(*events)
    again = Trusting("acme")
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(before.snapshot()), type=type(before.snapshot())))
    assert again.snapshot() == before.snapshot()
    for event in events[at:]:
        again.apply(event)
    assert again.snapshot() == after.snapshot()


@given(st.lists(_event, max_size=12, unique_by=lambda one: one[3]), st.integers(0, 12), st.integers(0, 12))
def test_what_was_read_and_what_was_kept_are_together_what_the_longer_of_them_knew(
    drawn: list[tuple[int, str, str, int]], read: int, at: int
) -> None:
    events = [event_of(one) for one in drawn]
    begun = folded(*events[:read])
    begun.restore(folded(*events[:at]).snapshot())
    assert what_matters(begun) == what_matters(folded(*events[: max(read, at)]))


def what_matters(trusting: Trusting) -> list[tuple[Any, ...]]:
    """All but definitions that are neither trusted nor offered."""
    return [
        (one.tool, one.first, one.later, one.current, one.since_us, one.approval, one.definitions.get(one.current))
        for one in trusting.all()
    ]


def quarantine(number: int, value: bytes | None = b"stopped") -> Delivered:
    return Delivered("control-state", 0, number, f"acme|q{number}".encode(), value, (), 1)


@contextlib.asynccontextmanager
async def remembers(root: Path, **more: Any) -> AsyncIterator[Remembering]:
    """That has caught up."""
    one = Remembering(settings(root, **more), KEY)
    one.definitions = definitions
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(one.run())
        await one.caught_up(now_us())
        yield one
        running.cancel()


async def test_what_tightens_is_on_the_disk_before_it_is_obeyed(tmp_path: Path) -> None:
    async with remembers(tmp_path) as one:
        for number in range(5):
            one.note([quarantine(number)])
            await one.settled()
            again = await Remembering(settings(tmp_path), KEY).recall(AWAY)
            assert set(again.quarantines) == {f"acme|q{each}".encode() for each in range(number + 1)}
        one.note([quarantine(0, None)])
        await one.settled()
        again = await Remembering(settings(tmp_path), KEY).recall(AWAY)
        assert b"acme|q0" not in again.quarantines


async def test_what_cannot_be_kept_is_not_left_as_it_was_and_is_kept_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remembering, "RETRY_S", 0.01)
    async with remembers(tmp_path) as one:
        with monkeypatch.context() as full:
            full.setattr(kept_state, "KEPT_STATE_BYTES_MAX", 10)
            one.note([quarantine(1)])
            await one.settled()
            with pytest.raises(LogUnavailable, match=r"Kafka is away\. .* does not exist"):
                await Remembering(settings(tmp_path), KEY).recall(AWAY)
        assert "starts only while Kafka is there" in caplog.text
        await until((one._kept.directory / STATE).exists)
        again = await Remembering(settings(tmp_path), KEY).recall(AWAY)
        assert set(again.quarantines) == {b"acme|q1"}
        assert again.definitions == definitions()


async def test_what_was_heard_before_the_log_left_is_known_to_the_next_start_too(tmp_path: Path) -> None:
    """It was cut off while it read; what it heard counts more than what was kept before."""
    KeptState(settings(tmp_path), KEY).keep(now_us(), {b"acme|q1": b"old", b"acme|q2": b"old"}, definitions())
    one = Remembering(settings(tmp_path), KEY)
    one.definitions = definitions
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(one.run())
        one.note([quarantine(2, None), quarantine(3)])
        await one.settled()
        begun = await one.recall(AWAY)
        await one.settled()
        known = {b"acme|q1": b"old", b"acme|q3": b"stopped"}
        assert begun.quarantines == known, "with this it begins"
        again = await Remembering(settings(tmp_path), KEY).recall(AWAY)
        assert again.quarantines == known, "this is on its disk by then"
        running.cancel()


async def test_a_disk_that_can_neither_be_written_nor_cleared_is_said_to_be_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remembering, "RETRY_S", 0.01)
    async with remembers(tmp_path) as one:
        assert (one.is_lost, one.is_stale) == (False, False)
        a_directory(one._kept.directory / STATE)  # neither written over nor unlinked, whoever asks
        one.note([quarantine(1)])
        await one.settled()
        assert (one.is_lost, one.is_stale) == (True, True)
        assert caplog.text.count("what is out of date cannot be removed") == 1
        (one._kept.directory / STATE).rmdir()
        await until(lambda: not one.is_lost)
        assert not one.is_stale
        again = await Remembering(settings(tmp_path), KEY).recall(AWAY)
        assert set(again.quarantines) == {b"acme|q1"}


def unprivileged(work: Callable[[], None]) -> None:
    """As somebody to whom modes of files matter; in a process of its own."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            if os.getuid() == 0:
                os.setgid(65_534)
                os.setuid(65_534)
            work()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A root that anybody may enter, in whose directory `known` nothing can be made, renamed or removed."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        state = kept(root)
        for path in (state.directory, *state.directory.parents):
            if path.is_relative_to(root):
                path.chmod(0o755)
        yield root


def test_what_lies_where_nothing_can_be_written_may_be_out_of_date_and_is_not_begun_with(unwritable: Path) -> None:
    state = KeptState(settings(unwritable), KEY)
    for path in state.directory.iterdir():
        path.chmod(0o644)
    state.directory.chmod(0o555)

    def check() -> None:
        found = state.recall(NOW)
        assert isinstance(found, NotUsable)
        assert "cannot be written (Permission denied)" in found.sentence

    unprivileged(check)


def test_what_cannot_be_removed_is_emptied_where_that_can_be(unwritable: Path) -> None:
    state = KeptState(settings(unwritable), KEY)
    for path in state.directory.iterdir():
        path.chmod(0o666)
    state.directory.chmod(0o555)
    unprivileged(state.forget)
    assert [path.stat().st_size for path in state.directory.iterdir()] == [0, 0]
    assert isinstance(state.recall(NOW), NotUsable)


async def test_an_edge_that_is_told_to_keep_nothing_leaves_nothing(tmp_path: Path) -> None:
    kept(tmp_path)
    off = {"limits": Limits(kept_state_s=0)}
    one = Remembering(settings(tmp_path, **off), KEY)
    await one.run()
    await one.caught_up(NOW)
    with pytest.raises(LogUnavailable, match=r"By limits\.kept_state_s this edge keeps nothing"):
        await one.recall(AWAY)
    assert list((tmp_path / "data" / "known").iterdir()) == []


class Heard:
    """A subscription whose log is at its end, has more, or is away."""

    lag_of: int | None = 0
    asked = 0

    async def lag(self) -> int:
        self.asked += 1
        if self.lag_of is None:
            raise AWAY
        return self.lag_of


async def test_how_old_it_is_follows_what_was_heard_and_a_log_that_is_away_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "LOOK_S", 0.001)
    heard: Any = Heard()
    async with remembers(tmp_path) as one, asyncio.TaskGroup() as tasks:
        one.heard_us = NOW  # some time ago, or ahead
        hearing = tasks.create_task(one.hear(lambda: heard))
        await until(lambda: one.heard_us != NOW)
        heard.lag_of, enough = 3, heard.asked + 2
        await until(lambda: heard.asked >= enough)
        before, enough = one.heard_us, heard.asked + 3
        await until(lambda: heard.asked >= enough)
        assert one.heard_us == before, "what is not read is not known"
        assert one.is_heard
        heard.lag_of = None
        await until(lambda: not one.is_heard)
        hearing.cancel()


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0)
