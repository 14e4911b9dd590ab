"""A loopback proxy in front of several edges: each request goes to the next one, also on one connection, and bytes pass
as they come: `with round_robin() as proxy: proxy.open(addresses, token)`.

Counterpart: run.py. The suite knows no tokens, so the proxy adds one; of a request it changes nothing else (Host,
Origin and odd spaces are for the gateway to judge). A client that leaves mid-answer leaves the edge as well.
"""

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

HEAD_BYTES_MAX: Final = 65_536
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
CHUNK: Final = 65_536
DEADLINE_S: Final = 10.0


class Gone(Exception):
    """The peer closed the connection."""


class Stream:
    """The bytes of one peer. `watch` may read ahead while somebody else is answered; nothing is lost to it."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._ahead = b""

    async def head(self) -> bytes:
        """Up to and with the empty line. Raises Gone."""
        while (end := self._ahead.find(b"\r\n\r\n")) < 0:
            if len(self._ahead) > HEAD_BYTES_MAX:
                raise Gone
            await self._more()
        return self._take(end + 4)

    async def line(self) -> bytes:
        while (end := self._ahead.find(b"\r\n")) < 0:
            await self._more()
        return self._take(end + 2)

    async def some(self, most: int) -> bytes:
        """Between 1 and `most` bytes. Raises Gone."""
        if not self._ahead:
            await self._more()
        return self._take(min(most, len(self._ahead)))

    async def exactly(self, count: int) -> AsyncIterator[bytes]:
        while count:
            part = await self.some(count)
            count -= len(part)
            yield part

    async def watch(self) -> None:
        """Returns when the peer has closed."""
        with contextlib.suppress(Gone, OSError):
            while len(self._ahead) < BODY_BYTES_MAX:
                await self._more()

    async def _more(self) -> None:
        data = await self._reader.read(CHUNK)
        if not data:
            raise Gone
        self._ahead += data

    def _take(self, count: int) -> bytes:
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        return taken


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header, lower case; empty where there is none."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().lower()
    return b""


async def body(head: bytes, stream: Stream, *, to_the_end: bool = False) -> AsyncIterator[bytes]:
    """The bytes after `head`, framing included; `to_the_end`: an answer without framing lasts as long as its
    connection.
    """
    if header(head, b"transfer-encoding") == b"chunked":
        size = -1
        while size:
            line = await stream.line()
            size = int(line.partition(b";")[0], 16)
            yield line
            async for part in stream.exactly(size):
                yield part
            yield await stream.line()
    elif (length := header(head, b"content-length")) or not to_the_end:
        async for part in stream.exactly(int(length or b"0")):
            yield part
    else:
        with contextlib.suppress(Gone):
            while True:
                yield await stream.some(CHUNK)


class RoundRobin:
    """Serves while it is entered; `open` says whom it stands for."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._turns: Iterator[tuple[str, int]] = itertools.cycle([("127.0.0.1", 1)])
        self._authorization = b""
        self.passed: dict[int, int] = {}  # port of an edge → requests

    def open(self, addresses: Sequence[tuple[str, int]], token: str) -> None:
        """From now on requests go to these, in turn, as the bearer of `token`."""
        self._authorization = f"authorization: Bearer {token}\r\n".encode()
        self.passed = {port: 0 for _, port in addresses}
        self._turns = itertools.cycle(addresses)

    async def serve(self, ended: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connection, sock=self._listening, limit=CHUNK)
        async with server:
            await ended.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Stream(reader)
        with contextlib.suppress(Gone, OSError, TimeoutError):
            while await self._request(client, writer):
                pass
        writer.close()

    async def _request(self, client: Stream, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection lives on."""
        head = await client.head()
        host, port = next(self._turns)
        async with asyncio.timeout(DEADLINE_S):
            from_edge, to_edge = await asyncio.open_connection(host, port, limit=CHUNK)
        self.passed[port] = self.passed.get(port, 0) + 1
        try:
            first, rest = head.split(b"\r\n", 1)
            to_edge.write(first + b"\r\n" + self._authorization + rest)
            async for part in body(head, client):
                to_edge.write(part)
                await to_edge.drain()
            leaving = asyncio.create_task(client.watch(), name="the client leaves")
            answering = asyncio.create_task(_relay(Stream(from_edge), writer), name="the edge answers")
            try:
                await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
                return answering.done() and answering.result() and header(head, b"connection") != b"close"
            finally:
                for task in (leaving, answering):
                    task.cancel()
                await asyncio.gather(leaving, answering, return_exceptions=True)
        finally:
            to_edge.close()


async def _relay(edge: Stream, writer: asyncio.StreamWriter) -> bool:
    """The answer as it comes; whether the client's connection may live on."""
    status = 100
    while status < 200:  # an interim answer has no body
        head = await edge.head()
        status = int(head[9:12])
        writer.write(head)
    if status not in (204, 304):
        async for part in body(head, edge, to_the_end=True):
            writer.write(part)
            await writer.drain()
    framed = header(head, b"content-length") or header(head, b"transfer-encoding") or status in (204, 304)
    return bool(framed) and header(head, b"connection") != b"close"


@contextlib.contextmanager
def round_robin() -> Iterator[RoundRobin]:
    """A proxy that listens already, in a thread of its own; its port is known before the edges are."""
    proxy = RoundRobin()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(ended)), name="round robin")
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(DEADLINE_S)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
