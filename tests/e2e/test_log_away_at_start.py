"""An edge whose log is away, or says nothing, before it was read for the first time; and when it is back.

The log is a local one that can be told to be away; `test_start_without_kafka.py` has the real one.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.parts.edge import until

from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.events import QuarantineImposed, ToolDefined
from tidegate.ids import now_us, uuid7
from tidegate.log.port import Delivered, Record, Subscription
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.signing import trusted_keys
from tidegate.policy.trusting import Trusting
from tidegate.secrets import ClusterSecrets
from tidegate.sessions.opening import open_sessions
from tidegate.settings import Settings
from tidegate_edge import watch
from tidegate_edge.kept_state import STATE, Definitions, KeptState, Recalled
from tidegate_edge.wiring import EdgeService, open_edge

SECRETS = ClusterSecrets.generate()


class Quiet:
    """A subscription whose broker is gone, and nothing says so."""

    caught_up = False

    async def poll(self, records_max: int, timeout_s: float) -> list[Delivered]:
        return []

    async def lag(self) -> int:
        raise LogUnavailable("away")

    async def close(self) -> None: ...


class Leaving:
    """A subscription whose broker goes away after what it first brought."""

    caught_up = False

    def __init__(self, began: Subscription) -> None:
        self._began = began
        self._has_told = False

    async def poll(self, records_max: int, timeout_s: float) -> list[Delivered]:
        if self._has_told:
            raise LogUnavailable("Kafka has left.")
        records = await self._began.poll(records_max, timeout_s)
        self._has_told = bool(records)
        return records

    async def lag(self) -> int:
        raise LogUnavailable("Kafka has left.")

    async def close(self) -> None:
        await self._began.close()


Mood = Literal["well", "away", "quiet", "leaving"]


class Moody:
    """A log that is well, away, quiet, or leaves while it is read."""

    def __init__(self, log: SqliteLog, mood: Mood) -> None:
        self.log = log
        self.mood = mood

    async def prepare(self) -> None:
        self._check()
        await self.log.prepare()

    async def append(self, records: Sequence[Record]) -> None:
        self._check()
        await self.log.append(records)

    async def follow(self, topics: Sequence[str], **more: Any) -> Subscription:
        self._check()
        if self.mood == "quiet":
            return Quiet()  # type: ignore[return-value]
        began = await self.log.follow(topics, **more)
        return Leaving(began) if self.mood == "leaving" else began  # type: ignore[return-value]

    async def close(self) -> None: ...

    def _check(self) -> None:
        if self.mood == "away":
            raise LogUnavailable("Kafka is away.")


def settings_in(root: Path) -> Settings:
    given = {
        "log": "kafka://127.0.0.1:1",
        "tenant": "acme",
        "listen": "127.0.0.1:9",
        "identity": {"local_issuer": True},
        "limits": {"drain_timeout_s": 0.1},
        "root": str(root),
    }
    return msgspec.convert(given, Settings)


def stamp() -> dict[str, Any]:
    return {"id": uuid7(), "time_us": now_us(), "tenant": "acme", "region": "local"}


def imposed(name: str) -> tuple[bytes, bytes]:
    """A record of `control-state`."""
    event = QuarantineImposed(**stamp(), quarantine_id=name, scope="agent", value=name, reason="r", actor="root")
    value = Chain(name).seal(event).value
    assert value is not None
    return f"acme|{name}".encode(), value


def keep(settings: Settings, *quarantines: str) -> None:
    trusting = Trusting("acme")
    trusting.apply(ToolDefined(**stamp(), server="up", tool="t", digest="d", definition=msgspec.Raw(b"{}")))
    definitions = Definitions(trusting.snapshot(), ((("up", "prompt", "p"), "d"),))
    kept = KeptState(settings, SECRETS.kept_key())
    kept.keep(now_us(), dict(map(imposed, quarantines)), definitions)


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, mood: Mood, *logged: str, is_prepared: bool = True
) -> AsyncIterator[tuple[EdgeService, Moody]]:
    """An edge and its log, which has these quarantines."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    local = SqliteLog(settings.data_dir / "log.db")
    await local.prepare()
    await local.append([Record("control-state", *imposed(name)) for name in logged])
    log = Moody(local, mood)
    sessions = open_sessions(settings)
    await sessions.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(local.close)
        stack.push_async_callback(sessions.stop)
        opening = open_edge(
            settings, log, sessions, SECRETS, trusted_keys(()), CollectorRegistry(), is_prepared=is_prepared
        )
        yield await stack.enter_async_context(opening), log


def obeyed(edge: EdgeService) -> set[str]:
    return {one.quarantine_id for one in edge.edge.quarantines_of("acme").current(now_us())}


@pytest.mark.parametrize("mood", ["away", "quiet"])
@pytest.mark.parametrize("is_prepared", [False, True])
async def test_it_begins_with_what_it_knew_and_is_corrected_by_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mood: Literal["away", "quiet"], is_prepared: bool
) -> None:
    monkeypatch.setattr(watch, "QUIET_S", 0.2)
    settings = settings_in(tmp_path)
    keep(settings, "stays", "forgotten")
    async with opened(settings, mood, "stays", "new", is_prepared=is_prepared) as (edge, log):
        await until(lambda: "log" not in edge.awaiting())
        assert obeyed(edge) == {"stays", "forgotten"}
        assert edge.edge.holding.trust.of("up", "t") is not None
        assert edge.degraded() == {"log"}
        assert not edge.edge.approvals.is_current
        log.mood = "well"
        await until(lambda: edge.degraded() == set(), 20)
        assert obeyed(edge) == {"stays", "new"}, "what the log does not have any more was lifted, however long ago"
        assert edge.edge.approvals.is_current
    again = KeptState(settings, SECRETS.kept_key()).recall(now_us())
    assert {key.decode() for key in getattr(again, "quarantines", ())} == {"acme|stays", "acme|new"}


async def test_what_it_heard_before_the_log_left_counts_more_than_what_it_kept(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    keep(settings, "kept")
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    changed = ToolDefined(**stamp(), server="up", tool="t", digest="d2", definition=msgspec.Raw(b"{}"))
    await log.append([Chain("catalog").seal(changed)])
    await log.close()
    async with opened(settings, "leaving", "new") as (edge, _):
        await until(lambda: "log" not in edge.awaiting())
        assert obeyed(edge) == {"kept", "new"}
        known = edge.edge.holding.trust.of("up", "t")
        assert known is not None
        assert (known.trusted, known.current) == ("d", "d2")
        again = KeptState(settings, SECRETS.kept_key()).recall(now_us())  # as if it were killed now
        assert isinstance(again, Recalled)
        assert set(again.quarantines) == {b"acme|kept", b"acme|new"}
        (tool,) = again.definitions.trusting.tools
        assert (tool.trusted, tool.current) == ("d", "d2")


async def test_an_edge_says_that_its_disk_cannot_keep_what_it_obeys(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    known = KeptState(settings, SECRETS.kept_key()).directory
    (known / STATE).mkdir(parents=True)  # neither written over nor unlinked
    async with opened(settings, "well", "new") as (edge, _):
        await until(lambda: "log" not in edge.awaiting(), 20)
        await until(lambda: edge.degraded() == {"disk"}, 20)
        (known / STATE).rmdir()
        await until(lambda: edge.degraded() == set(), 20)


async def test_with_nothing_kept_it_waits_for_a_log_that_left_after_it_was_prepared(tmp_path: Path) -> None:
    async with opened(settings_in(tmp_path), "away", "new") as (edge, log):
        assert "log" in edge.awaiting()
        assert edge.degraded() == set()
        log.mood = "well"
        await until(lambda: "log" not in edge.awaiting(), 20)
        assert obeyed(edge) == {"new"}


async def test_with_nothing_kept_it_does_not_start_while_the_log_is_away(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match=r"Kafka is away\. .*state\.kept does not exist"):
        async with opened(settings_in(tmp_path), "away", is_prepared=False):
            pytest.fail("it has started")
