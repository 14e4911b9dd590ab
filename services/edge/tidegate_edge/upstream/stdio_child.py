"""One server process and its pipes, from start to end: lines in, lines out. Counterpart: `stdio_session.py` gives the
lines their meaning.

The process lives in a group of its own that is ended whole; where the edge itself is killed, by a guard: a shell that
waits for the end of a pipe from the edge.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.limits import STDIO_LINE_BYTES_MAX

STOP_S: Final = 3.0
UNREAD_BYTES_MAX: Final = 16 * 1024 * 1024  # written to a process that does not read; past it nothing more is sent
PASSED_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "SSL_CERT_FILE", "SSL_CERT_DIR")
LAST_WORDS_MAX: Final = 200
_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"  ")

_log = logging.getLogger(__name__)


class Command(msgspec.Struct, frozen=True):
    """What to run, with what of the environment, and where."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str = ""

    def whole_environment(self) -> dict[str, str]:
        """What is passed on of the edge's own, and what the configuration adds."""
        return {key: os.environ[key] for key in PASSED_ENVIRONMENT if key in os.environ} | dict(self.environment)


class Child:
    """A running process. `end` it whatever happens."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._guard: asyncio.subprocess.Process | None = None
        self._last_words: deque[str] = deque(maxlen=20)

    @classmethod
    async def start(cls, name: str, command: Command) -> "Child":
        """Raises OSError where it cannot be started."""
        process = await asyncio.create_subprocess_exec(
            *command.words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=command.whole_environment(),
            cwd=command.cwd or None,
            limit=STDIO_LINE_BYTES_MAX,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        child = cls(name, process)
        try:
            child._guard = await _guarded(process.pid)
        except BaseException:
            await child.end()
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def why(self) -> str:
        """What it said last on its standard error, for a sentence's end; "" where it said nothing."""
        return f"; its last words: {_shortened(self._last_words[-1])}" if self._last_words else ""

    def write(self, message: bytes) -> None:
        """One JSON text; line ends in it can only be white space. Raises UpstreamFault, with nothing sent."""
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing() or self._process.returncode is not None:
            raise UpstreamFault(
                f"{self.name}: the process is not running{self.why}", code="upstream-unreachable", sent=False
            )
        if stdin.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            raise UpstreamFault(f"{self.name}: the process does not read its input", code="upstream-busy", sent=False)
        if b"\n" in message or b"\r" in message:
            message = message.translate(_LINE_ENDS)
        stdin.write(message + b"\n")

    async def lines(self) -> AsyncIterator[bytes]:
        """What it says on its standard output, until it ends or says a line that is too long."""
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                yield line
        except ValueError:
            _log.warning(
                "%s: a line longer than %d bytes; the process is started again", self.name, STDIO_LINE_BYTES_MAX
            )

    def junk(self, line: bytes) -> None:
        """A line that is no message."""
        self._last_words.append(line[:200].decode(errors="replace").rstrip())

    async def hear_errors(self) -> None:
        """Keep what it says on its standard error, bounded."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._last_words.extend(line for line in chunk.decode(errors="replace").splitlines() if line.strip())

    async def end(self) -> None:
        """Close its stdin, then SIGTERM, then SIGKILL the whole group."""
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
                    break
            except TimeoutError:
                continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
        guard, self._guard = self._guard, None
        if guard is not None:
            with contextlib.suppress(ProcessLookupError):
                guard.kill()
            await guard.wait()
            if guard.stdin is not None:
                guard.stdin.close()


def _shortened(line: str) -> str:
    """As many whole words as fit."""
    if len(line) <= LAST_WORDS_MAX:
        return line
    cut = line[:LAST_WORDS_MAX]
    return f"{cut.rpartition(' ')[0] or cut} …"


async def _guarded(group: int) -> asyncio.subprocess.Process | None:
    """A process that outlives the edge by a moment and kills the group. None where there is no shell."""
    try:
        return await asyncio.create_subprocess_exec(
            *("sh", "-c", 'read _; kill -9 "-$0"', str(group)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
    except OSError as error:
        _log.warning("no guard for the process group %d (%s): a killed edge may leave processes behind", group, error)
        return None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
