"""What an edge has folded of the log, on its disk: quarantines, what is trusted of tools, what was recorded of offers,
and when the edge last knew that the log held no more. By it an edge starts while the log is away.

Two files: `catalog-*.kept`, and `state.kept`, which names the other one and is replaced last, so that both are of one
moment. Both are sealed with a key of the cluster's secrets: what was altered, torn or cut off counts as absent. What is
kept serves the edge alone that heard it, and the log alone that it was heard from, by the settings that reached it, so
that a mistyped address does not pass for an outage. Blocks. Counterpart: `remembering.py`, which says when.
"""

import contextlib
import hashlib
import hmac
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from tidegate.limits import KEPT_STATE_BYTES_MAX
from tidegate.policy.trusting import Snapshot
from tidegate.settings import Settings, host_port
from tidegate_edge.calls import Place
from tidegate_edge.offers import Key

MAGIC: Final = b"tidegate kept state 3\n"  # another format, or another meaning of it, has another number
STATE: Final = "state.kept"
PROBE: Final = "probe"
_SEAL_BYTES: Final = 32
_FILE_BYTES_MAX: Final = len(MAGIC) + _SEAL_BYTES + KEPT_STATE_BYTES_MAX
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # follows no link, waits for nobody
_T = TypeVar("_T")


def place_of(settings: Settings) -> Place:
    """Where an edge with these settings is."""
    name = settings.edge.id or f"{socket.gethostname()}-{host_port(settings.listen)[1]}"
    return Place(settings.tenant, settings.region, name)


class Definitions(msgspec.Struct, frozen=True):
    """The fold of the history `catalog`."""

    trusting: Snapshot
    offers: tuple[tuple[Key, str], ...]  # what is no tool → digest last recorded by any edge


@dataclass(frozen=True)
class Recalled:
    """What an edge begins with. `quarantines` are records of `control-state`, as the log had them."""

    heard_us: int  # then the log held no more than this
    quarantines: Mapping[bytes, bytes]
    definitions: Definitions


@dataclass(frozen=True)
class NotUsable:
    """Nothing that may be begun with is here. The sentence says why, and what to do."""

    sentence: str


class _State(msgspec.Struct, frozen=True):
    source: str  # names the edge, and the settings that it reached the log by
    heard_us: int
    quarantines: dict[bytes, bytes]
    catalog: str  # name of the file


class KeptState:
    """The files of one edge. `key` is of the cluster's secrets. Use from one thread at a time."""

    def __init__(self, settings: Settings, key: bytes) -> None:
        self.directory = settings.data_dir / "known"
        self._key = key
        self._age_s_max = settings.limits.kept_state_s
        source = msgspec.json.encode((place_of(settings), settings.log, settings.kafka))
        self._source = hmac.digest(key, source, "sha256").hex()
        self._catalog = ""

    def keep(self, heard_us: int, quarantines: Mapping[bytes, bytes], definitions: Definitions | None) -> None:
        """Replace what was kept; `definitions` None: they are as they were. It outlives the process on return, and a
        failure of power after `sync`. Raises OSError, ValueError where there is too much.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if definitions is not None:
            content = self._sealed(msgspec.msgpack.encode(definitions))
            self._catalog = f"catalog-{hashlib.sha256(content).hexdigest()[:16]}.kept"
            self._write(self._catalog, content)
        state = _State(self._source, heard_us, dict(quarantines), self._catalog)
        self._write(STATE, self._sealed(msgspec.msgpack.encode(state)))
        for path in self.directory.glob("catalog-*"):
            if path.name != self._catalog:
                path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Raises OSError."""
        for path in (self.directory / self._catalog, self.directory / STATE, self.directory):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def forget(self) -> None:
        """Rather nothing than what is not true any more. Raises OSError."""
        for path in (self.directory / STATE, *self.directory.glob("catalog-*")):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # of the directory: the file itself may still be emptied
                with contextlib.suppress(FileNotFoundError):
                    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK))

    def recall(self, now_us: int) -> Recalled | NotUsable:
        """What was kept, if it may be begun with now."""
        state = self._read(STATE, _State)
        if isinstance(state, NotUsable):
            return state
        if not hmac.compare_digest(state.source, self._source):
            return NotUsable(
                f"What {self.directory} keeps was heard by another edge, or with other settings of tenant, region, "
                "edge.id, log or kafka. If those of now are right, start it when Kafka is back"
            )
        if (told := self._too_old(state.heard_us, now_us)) is not None:
            return told
        definitions = self._read(state.catalog, Definitions)
        if isinstance(definitions, NotUsable):
            return definitions
        return self._not_writable() or Recalled(state.heard_us, state.quarantines, definitions)

    def _not_writable(self) -> NotUsable | None:
        """On such a disk an edge has obeyed what it could neither keep nor forget."""
        try:
            self._write(PROBE, b"")
            (self.directory / PROBE).unlink()
        except OSError as error:
            return NotUsable(
                f"{self.directory} cannot be written ({error.strerror}), so that what it keeps may be older than what "
                "was obeyed. Let the edge write there, and start it when Kafka is back"
            )
        return None

    def _too_old(self, heard_us: int, now_us: int) -> NotUsable | None:
        """A clock that was set back by more than the bound would make what is old young: it is not believed either."""
        if abs(now_us - heard_us) <= self._age_s_max * 1e6:
            return None
        at = datetime.fromtimestamp(heard_us / 1e6, UTC).isoformat(timespec="seconds")
        return NotUsable(
            f"What {self.directory} keeps is of {at}, and limits.kept_state_s allows {self._age_s_max:g} s. Start it "
            "when Kafka is back, or raise limits.kept_state_s if nobody was quarantined since then"
        )

    def _write(self, name: str, content: bytes) -> None:
        draft = self.directory / f".{name}.new"
        try:
            draft.unlink(missing_ok=True)
            with open(os.open(draft, _NEW, 0o600), "wb") as file:
                file.write(content)
            draft.replace(self.directory / name)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise

    def _sealed(self, content: bytes) -> bytes:
        if len(content) > KEPT_STATE_BYTES_MAX:
            raise ValueError(f"{len(content)} bytes, where {KEPT_STATE_BYTES_MAX} are kept at most")
        return MAGIC + hmac.digest(self._key, MAGIC + content, "sha256") + content

    def _read(self, name: str, kind: type[_T]) -> _T | NotUsable:
        path = self.directory / name
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                about = os.fstat(file.fileno())
                is_sound = stat.S_ISREG(about.st_mode) and about.st_size <= _FILE_BYTES_MAX
                raw = file.read(_FILE_BYTES_MAX) if is_sound else b""
        except FileNotFoundError:
            return NotUsable(
                f"{path} does not exist: an edge that has never been ready with this data directory needs the log. "
                "Start it when Kafka is back"
            )
        except OSError as error:
            return NotUsable(f"{path} cannot be read ({error.strerror}). Start it when Kafka is back")
        seal, content = raw[len(MAGIC) : len(MAGIC) + _SEAL_BYTES], raw[len(MAGIC) + _SEAL_BYTES :]
        if raw.startswith(MAGIC) and hmac.compare_digest(seal, hmac.digest(self._key, MAGIC + content, "sha256")):
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.msgpack.decode(content, type=kind)
        return NotUsable(
            f"{path} was altered or damaged, or is of another version or of other cluster secrets, and counts as "
            "absent. Start it when Kafka is back"
        )
