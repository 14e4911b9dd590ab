"""A closed-loop load generator: N callers, each with one keep-alive connection and one modern tools/call in flight.

Every call has a fresh id, a fresh nonce and fresh arguments (about 300 bytes); every answer is checked. Bounded by time
and number. Requests are built with one bytes format over equal-length parts, answers are parsed by llhttp and msgspec:
a call costs it some 15 µs. Prints its result as one JSON object; exits 1 when a call failed.
"""

import argparse
import asyncio
import os
import resource
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

GRACE_S: Final = 10.0  # for calls in flight when the time is up
CALLERS_MAX: Final = 1_024
FIRST_ID: Final = 1_000_000_000  # ids have ten digits, so every request has the same length
_TOPICS: Final = ("budget", "release", "incident", "hiring", "roadmap", "retention", "capacity", "onboarding")
_PHRASE: Final = "Summarize the open points about {} for the weekly report: dates, owners and what is undecided."
TEXTS: Final = tuple(f"{_PHRASE.format(topic):<160}".encode() for topic in _TOPICS)

_BODY: Final = (
    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%b","arguments":{"text":"%b",'
    b'"path":"/srv/projects/team-%03d/notes/%d.md","size":%d,"nonce":"%b"},"_meta":{'
    b'"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},'
    b'"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"}}}}'
)


class Outcome(msgspec.Struct):
    isError: bool = False


class Answer(msgspec.Struct):
    id: int | None = None
    result: Outcome | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


_decode = msgspec.json.Decoder(Answer).decode


class Result(msgspec.Struct, kw_only=True):
    """What one run measured. `calls` are the good ones; `cpu_s` is the generator's own CPU."""

    callers: int
    calls: int
    seconds: float
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float
    errors: dict[str, int]
    first_error: str = ""


class Requests:
    """Makes the bytes of the next request. One for all callers."""

    def __init__(self, url: str, tool: str, token: str) -> None:
        parts = urlsplit(url)
        self._tool = tool.encode()
        self._run = secrets.token_hex(4).encode()
        self._next = FIRST_ID
        bearer = f"authorization: Bearer {token}\r\n" if token else ""
        self._head = (
            f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{bearer}content-type: application/json\r\n"
            f"accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n"
            f"mcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {len(self._body(FIRST_ID))}\r\n\r\n"
        ).encode()

    def _body(self, number: int) -> bytes:
        nonce = b"%b-%d" % (self._run, number)
        text = TEXTS[number % len(TEXTS)]
        return _BODY % (number, self._tool, text, number % 997, number, 100 + number % 900, nonce)

    def next(self) -> tuple[int, bytes]:
        """(id, request)."""
        number = self._next
        self._next += 1
        return number, self._head + self._body(number)


class Run:
    """Counts, and decides when a caller may go on."""

    def __init__(self, requests: Requests, *, calls_max: int) -> None:
        self.requests = requests
        self.latencies_ns: list[int] = []
        self.errors: Counter[str] = Counter()
        self.first_error = ""
        self.active = 0
        self.ended = asyncio.Event()
        self._left = calls_max
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def may_call(self) -> bool:
        self._left -= 1
        return self._left >= 0 and not self._stopped

    def failed(self, reason: str, detail: bytes = b"") -> None:
        self.errors[reason] += 1
        self.first_error = self.first_error or f"{reason}: {detail[:500].decode(errors='replace')}"

    def left(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.ended.set()


class Caller(asyncio.Protocol):
    """One connection, one call at a time; the next one starts when the answer is complete."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._id = 0
        self._sent_ns = 0
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._run.active += 1

    def call(self) -> None:
        if not self._run.may_call():
            self._id = 0
            self._transport.close()
            return
        self._body = b""
        self._id, request = self._run.requests.next()
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            self._run.failed("bad-http", f"{fault}: {data!r}".encode())
            self._id = 0
            self._transport.close()

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        took_ns = time.perf_counter_ns() - self._sent_ns
        if reason := fault_of(self._parser.get_status_code(), self._body, self._id):
            self._run.failed(reason, self._body)
        else:
            self._run.latencies_ns.append(took_ns)
        if self._parser.should_keep_alive():
            self.call()
        else:
            self._run.failed("connection-closed")
            self._id = 0
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._id:
            self._run.failed("connection-lost", str(exc).encode())
        self._run.left()


def fault_of(status: int, body: bytes, request_id: int) -> str:
    """Why this is not the right answer; "" when it is."""
    if status != 200:
        return f"status-{status}"
    try:
        answer = _decode(body)
    except msgspec.DecodeError:
        return "not-json-rpc"
    if answer.id != request_id:
        return "foreign-id"
    if answer.error or answer.result is None:
        return "rpc-error"
    return "tool-error" if answer.result.isError else ""


async def measure(url: str, tool: str, token: str, *, callers: int, seconds: float, calls_max: int) -> Result:
    """Connect all callers, then let them call until the time or the number is reached and the last answer is in."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    run = Run(Requests(url, tool, token), calls_max=calls_max)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    pairs = [await loop.create_connection(lambda: Caller(run), host, port) for _ in range(callers)]
    started, cpu = time.perf_counter(), _cpu_s()
    timer = loop.call_later(seconds, run.stop)
    for _, caller in pairs:
        caller.call()
    try:
        await asyncio.wait_for(run.ended.wait(), seconds + GRACE_S)
    except TimeoutError:
        run.failed("no-answer", f"{run.active} callers were still waiting".encode())
    timer.cancel()
    return _result(run, callers, time.perf_counter() - started, _cpu_s() - cpu)


def _result(run: Run, callers: int, seconds: float, cpu_s: float) -> Result:
    ordered = sorted(run.latencies_ns) or [0]
    return Result(
        callers=callers,
        calls=len(run.latencies_ns),
        seconds=round(seconds, 3),
        calls_per_s=round(len(run.latencies_ns) / seconds, 1),
        p50_ms=ordered[len(ordered) // 2] / 1e6,
        p99_ms=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e6,
        max_ms=ordered[-1] / 1e6,
        cpu_s=round(cpu_s, 4),
        errors=dict(run.errors),
        first_error=run.first_error,
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="an MCP endpoint, for example http://127.0.0.1:8080/mcp")
    parser.add_argument("--tool", default="echo", help="the tool's name there")
    parser.add_argument("--token-file", type=Path, help="else the environment variable TIDEGATE_TOKEN, else no token")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--calls-max", type=int, default=1_000_000)
    options = parser.parse_args()
    if not 1 <= options.callers <= CALLERS_MAX:
        parser.error(f"--callers: expected 1 to {CALLERS_MAX}")
    token = options.token_file.read_text().strip() if options.token_file else os.environ.get("TIDEGATE_TOKEN", "")
    bounds = {"callers": options.callers, "seconds": options.seconds, "calls_max": options.calls_max}
    result = uvloop.run(measure(options.url, options.tool, token, **bounds))
    print(msgspec.json.encode(result).decode())
    return 1 if result.errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
