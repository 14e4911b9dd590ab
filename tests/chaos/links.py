"""Loopback links that can be cut, held and slowed: TCP proxies between services and what they speak to.

`with running_links() as links`, then `links.open(name, target)` for each pair that speaks; the port is fixed for the
link's life, the target is asked for at each connection. They run on a thread of their own, so a test may block.
Counterpart: `faults.py`, which does the harm.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

CHUNK_BYTES: Final = 64 * 1024
CONNECTIONS_MAX: Final = 512  # of one link; more are refused
DEADLINE_S: Final = 10.0
TOO_BUSY: Final = b"Code: 202. DB::Exception: Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)\n"
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_REFUSAL: Final = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nX-ClickHouse-Exception-Code: 202\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(TOO_BUSY), TOO_BUSY)
)

Target = Callable[[], tuple[str, int]]


class Link:
    """One way between two parts. Its methods may be called from any thread; each undoes the one before."""

    def __init__(self, name: str, target: Target, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.port = 0
        self._target = target
        self._loop = loop
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_cut = self._is_refusing = False
        self._delay_s = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    def cut(self) -> None:
        """Connections break, and new ones end at once."""
        self._do(self._set(cut=True))

    def hold(self) -> None:
        """Connections stay, and nothing comes through: what was sent arrives when the link is healed."""
        self._do(self._set(held=True))

    def slow(self, delay_s: float) -> None:
        """Each piece that is sent takes so much longer."""
        self._do(self._set(delay_s=delay_s))

    def refuse(self) -> None:
        """An HTTP server that answers everything as an overloaded ClickHouse does."""
        self._do(self._set(refusing=True))

    def heal(self) -> None:
        self._do(self._set())

    def open(self) -> None:
        self._do(self._open())

    def close(self) -> None:
        self._do(self._close())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    async def _set(
        self, *, cut: bool = False, held: bool = False, refusing: bool = False, delay_s: float = 0.0
    ) -> None:
        self._is_cut, self._is_refusing, self._delay_s = cut, refusing, delay_s
        if cut or refusing:
            self._abort()
        if held:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def _open(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=CHUNK_BYTES)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._abort()

    def _abort(self) -> None:
        for writer in list(self._writers):
            with contextlib.suppress(OSError):  # it has ended by itself
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()  # a reset, not an end

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut or len(self._writers) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            if self._is_refusing:
                await _refuse(reader, writer)
            else:
                await self._carry(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target()
        far_reader, far_writer = await asyncio.open_connection(host, port, limit=CHUNK_BYTES)
        self._writers.add(far_writer)
        try:
            both = [asyncio.create_task(self._pump(*ends)) for ends in ((reader, far_writer), (far_reader, writer))]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        finally:
            self._writers.discard(far_writer)
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flowing.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            writer.write(data)
            await writer.drain()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The answer once the head of a request is there; then what is still coming is read, so that it is not lost."""
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_REFUSAL)
        await writer.drain()
        writer.write_eof()
        while await reader.read(CHUNK_BYTES):
            pass


class Links:
    """All of a stage's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.by_name: dict[str, Link] = {}
        self._loop = loop

    def open(self, name: str, target: Target) -> Link:
        link = self.by_name[name] = Link(name, target, self._loop)
        link.open()
        return link

    def heal(self) -> None:
        for link in self.by_name.values():
            link.heal()


@contextlib.contextmanager
def running_links() -> Iterator[Links]:
    """They end with the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="links", daemon=True)
    thread.start()
    links = Links(loop)
    try:
        yield links
    finally:
        for link in links.by_name.values():
            link.close()
        asyncio.run_coroutine_threadsafe(_settled(), loop).result(DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()


async def _settled() -> None:
    """Every other task of the loop has ended."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
