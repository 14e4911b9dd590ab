"""An upstream that is a process spoken to over stdio, one JSON-RPC message a line; requests of all callers share it.

The process lives in a group of its own that is ended whole; where the edge itself is killed, by a guard: a shell that
waits for the end of a pipe from the edge. Ended by itself, it is started again with back-off; what was in flight fails
and is not sent again.
"""

import asyncio
import contextlib
import ctypes
import itertools
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.limits import STDIO_LINE_BYTES_MAX
from tidegate_edge import messages
from tidegate_edge.messages import encode
from tidegate_edge.translate import CLIENT_INFO
from tidegate_edge.upstream.http import LEGACY
from tidegate_edge.upstream.listing import drain_tools
from tidegate_edge.upstream.port import Answer, Caller, Definitions, Routing

BACKOFF_S: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S: Final = 60.0  # a process that lived this long starts again without back-off
STOP_S: Final = 3.0
START_S: Final = 60.0
UNREAD_BYTES_MAX: Final = 16 * 1024 * 1024  # written to a process that does not read; past it nothing more is sent
PASSED_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "SSL_CERT_FILE", "SSL_CERT_DIR")

_log = logging.getLogger(__name__)


class StdioUpstream:
    """One configured command."""

    modern = False

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: str) -> None:
        self.name = name
        self._command = tuple(command)
        self._environment = {key: os.environ[key] for key in PASSED_ENVIRONMENT if key in os.environ} | dict(
            environment
        )
        self._cwd = cwd or None
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._last_words: deque[str] = deque(maxlen=20)
        self._keeper: asyncio.Task[None] | None = None
        self._guard: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Begin to keep the process running; does not wait for it."""
        self._keeper = asyncio.create_task(self._keep(), name=f"stdio {self.name}")

    async def ready(self, timeout_s: float) -> None:
        if self._ready.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            raise self._not_running() from error

    async def request(
        self, method: str, params: bytes, caller: Caller, *, routing: Routing, timeout_s: float
    ) -> Answer:
        return await self._ask(method, params, timeout_s)

    async def definitions(self, timeout_s: float) -> Definitions:
        await self.ready(timeout_s)

        async def fetch(cursor: str | None) -> Answer:
            params = encode({} if cursor is None else {"cursor": cursor})
            return await self._ask("tools/list", params, timeout_s)

        return await drain_tools(self.name, fetch)

    async def close(self) -> None:
        """Close its stdin, then SIGTERM, then SIGKILL the whole group."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._end()

    # the process

    async def _keep(self) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while not self._closing:
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            began_s = loop.time()
            try:
                await self._run_once()
            except* OSError as faults:
                reason = faults.exceptions[0]
                _log.warning(
                    "%s: cannot run '%s' (%s); is it on PATH, is `cwd` there?", self.name, self._command[0], reason
                )
            except* UpstreamFault as faults:
                _log.warning("%s", faults.exceptions[0])
            finally:
                self._ready.clear()
                await self._end()
            attempt = 1 if loop.time() - began_s > STABLE_S else attempt + 1

    async def _run_once(self) -> None:
        """From start to end of one process. Raises OSError where it cannot be started."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            cwd=self._cwd,
            limit=STDIO_LINE_BYTES_MAX,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        self._last_words.clear()
        self._guard = await _guarded(self._process.pid)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(self._listen(self._process), name=f"stdio {self.name} stdout")
            words = tasks.create_task(self._hear(self._process), name=f"stdio {self.name} stderr")
            try:
                await self._initialize()
                self._ready.set()
                await listening
            finally:
                words.cancel()
                listening.cancel()

    async def _initialize(self) -> None:
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT_INFO}
        answer = await self._ask("initialize", encode(params), START_S)
        if answer.error:
            raise UpstreamFault(f"{self.name}: initialize failed: {answer.error[:200].decode(errors='replace')}")
        self._write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._heard(line)
        except ValueError:
            _log.warning(
                "%s: a line longer than %d bytes; the process is started again", self.name, STDIO_LINE_BYTES_MAX
            )
        finally:
            self._ready.clear()
            self._fail_all(f"{self.name}: the process ended{self._why()}")

    def _heard(self, line: bytes) -> None:
        try:
            wire = messages.decode_wire(line)
        except msgspec.DecodeError:
            self._last_words.append(line[:200].decode(errors="replace").rstrip())
            return
        if wire.method is not msgspec.UNSET:
            if wire.id is not msgspec.UNSET:
                self._answer_server(wire)
            return
        waiter = self._waiting.pop(wire.id, None) if isinstance(wire.id, int) else None
        if waiter is None or waiter.done():
            return
        if wire.result is not msgspec.UNSET:
            waiter.set_result(Answer(result=bytes(wire.result)))
        elif wire.error is not msgspec.UNSET:
            waiter.set_result(Answer(error=bytes(wire.error)))

    def _answer_server(self, wire: messages.Wire) -> None:
        """A server's own request: ping is answered; no other capability was declared."""
        request_id: Any = wire.id
        if wire.method == "ping":
            self._write(messages.result_body(request_id, b"{}"))
        else:
            self._write(
                messages.error_body(request_id, messages.METHOD_NOT_FOUND, "the client declared no such capability")
            )

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(4096):
            self._last_words.extend(line for line in chunk.decode(errors="replace").splitlines() if line.strip())

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
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

    # messages

    async def _ask(self, method: str, params: bytes, timeout_s: float) -> Answer:
        request_id = next(self._ids)
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = waiter
        try:
            self._write(messages.request_body(request_id, method, params))
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError as error:
            self._cancel(request_id, "timed out")
            raise UpstreamFault(f"{self.name}: no answer within {timeout_s:g} s", code="upstream-timeout") from error
        except asyncio.CancelledError:
            self._cancel(request_id, "the caller went away")
            raise
        finally:
            self._waiting.pop(request_id, None)

    def _cancel(self, request_id: int, reason: str) -> None:
        params = {"requestId": request_id, "reason": reason}
        with contextlib.suppress(UpstreamFault):  # it ended meanwhile: nothing left to cancel
            self._write(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":%b}' % encode(params))

    def _write(self, line: bytes) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            raise self._not_running()
        if process.stdin.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            raise UpstreamFault(f"{self.name}: the process does not read its input", code="upstream-busy", sent=False)
        process.stdin.write(line + b"\n")

    def _fail_all(self, sentence: str) -> None:
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(UpstreamFault(sentence, code="upstream-broken"))
        self._waiting.clear()

    def _not_running(self) -> UpstreamFault:
        return UpstreamFault(
            f"{self.name}: the process is not running{self._why()}", code="upstream-unreachable", sent=False
        )

    def _why(self) -> str:
        return f"; its last words: {self._last_words[-1][:200]}" if self._last_words else ""


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
