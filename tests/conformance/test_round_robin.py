"""The proxy of the conformance run: turns are strict, nothing is held back, nothing but the token is added."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.conformance.round_robin import RoundRobin, round_robin

DEADLINE_S = 10.0


class Edge:
    """Keeps the heads that it was sent; answers by path."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heads: list[bytes] = []
        self.more = asyncio.Event()
        self.left = asyncio.Event()
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        body = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0))
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst\n\r\n")
            asked, gone = asyncio.create_task(self.more.wait()), asyncio.create_task(reader.read(1))
            await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.left.set()
            else:
                writer.write(b"7\r\nsecond\n\r\n0\r\n\r\n")
        else:
            told = self.name.encode() + b" " + body
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(told), told))
        writer.close()


@pytest.fixture
def proxy() -> Iterator[RoundRobin]:
    with round_robin() as made:
        yield made


@pytest.fixture
async def edges(proxy: RoundRobin) -> AsyncIterator[tuple[Edge, Edge]]:
    a, b = Edge("a"), Edge("b")
    servers = [await asyncio.start_server(edge, "127.0.0.1", 0) for edge in (a, b)]
    for edge, server in zip((a, b), servers, strict=True):
        edge.port = server.sockets[0].getsockname()[1]
    proxy.open([("127.0.0.1", edge.port) for edge in (a, b)], "t0ken")
    yield a, b
    for server in servers:
        server.close()


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    writer.write(
        b"POST /mcp HTTP/1.1\r\nHost: evil.example.com\r\nMcp-Name:  x  \r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))


async def test_requests_of_one_connection_meet_each_edge_in_turn(proxy: RoundRobin, edges: tuple[Edge, Edge]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        connection = await asyncio.open_connection("127.0.0.1", proxy.port)
        told = [await post(*connection, str(number).encode()) for number in range(4)]
        connection[1].close()
    assert told == [b"a 0", b"b 1", b"a 2", b"b 3"]
    assert set(proxy.passed.values()) == {2}


async def test_a_request_gains_the_token_and_keeps_every_byte_of_its_own(
    proxy: RoundRobin, edges: tuple[Edge, Edge]
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        connection = await asyncio.open_connection("127.0.0.1", proxy.port)
        await post(*connection, b"{}")
        connection[1].close()
    assert edges[0].heads == [
        b"POST /mcp HTTP/1.1\r\nauthorization: Bearer t0ken\r\n"
        b"Host: evil.example.com\r\nMcp-Name:  x  \r\nContent-Length: 2\r\n\r\n"
    ]


async def test_a_stream_passes_event_by_event_and_the_connection_lives_on(
    proxy: RoundRobin, edges: tuple[Edge, Edge]
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"first\n")
        edges[0].more.set()
        await reader.readuntil(b"second\n\r\n0\r\n\r\n")
        assert await post(reader, writer, b"next") == b"b next"
        writer.close()


async def test_a_client_that_leaves_mid_stream_leaves_the_edge_as_well(
    proxy: RoundRobin, edges: tuple[Edge, Edge]
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"first\n")
        writer.close()
        await edges[0].left.wait()
