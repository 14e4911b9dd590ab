"""What an edge keeps of the log on its disk: written before it is obeyed, believed while whole, its own and young."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
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
    path.write_bytes(path.read_bytes().replace(MAGIC, MAGIC.replace(b"2", b"3")))


def swapped(path: Path) -> None:
    """A file that is sealed well, and is another one."""
    path.write_bytes((catalog_of(path.parent) if path.name == STATE else path.parent / STATE).read_bytes())


HARM: list[Callable[[Path], None]] = [flipped, cut, another_version, swapped, Path.unlink, lambda path: cut_to(path, 0)]


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


def test_it_serves_no_other_cluster_and_no_other_log(tmp_path: Path) -> None:
    kept(tmp_path)
    others = ({"log": "kafka://127.0.0.1:10"}, {"tenant": "other"}, {"kafka": Kafka(prefix="other.")})
    for other in others:
        found = KeptState(settings(tmp_path, **other), KEY).recall(NOW)
        assert isinstance(found, NotUsable), other
        assert "other settings of tenant, log or kafka" in found.sentence
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
