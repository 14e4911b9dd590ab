"""Large bodies of strangers, held open, share a small amount of memory and leave the callers theirs."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from tests.parts.processes import free_port

from tidegate.limits import Limits
from tidegate.serving import open_server
from tidegate_edge.http_front import Exchange, protocol_class
from tidegate_edge.messages import Reply
from tidegate_edge.room import Rooms

BODY = 100_000


@pytest_asyncio.fixture
async def door() -> AsyncIterator[tuple[int, Rooms]]:
    rooms = Rooms(callers=3 * BODY, strangers=2 * BODY)

    async def serve(exchange: Exchange) -> Reply:
        return Reply(200, b"%d" % len(exchange.body))

    async def nothing(scope: object, receive: object, send: object) -> None: ...

    port = free_port()
    knows = protocol_class(serve, lambda exchange: b"authorization" in exchange.headers, Limits(), rooms)
    server = open_server(nothing, f"127.0.0.1:{port}", Limits(), http=knows)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0)
    yield port, rooms
    server.should_exit = True
    await serving


async def begin(port: int, headers: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /mcp HTTP/1.1\r\nhost: x\r\n{headers}content-length: {BODY}\r\n\r\n".encode() + b"x" * (BODY - 1)
    )
    await writer.drain()
    return reader, writer


async def held(rooms: Rooms, strangers: int, callers: int) -> None:
    async with asyncio.timeout(5):
        while (rooms.strangers.held, rooms.callers.held) != (strangers, callers):
            await asyncio.sleep(0)


async def test_strangers_fill_their_room_and_callers_are_served(door: tuple[int, Rooms]) -> None:
    port, rooms = door
    first, second = await begin(port), await begin(port)
    await held(rooms, 2 * (BODY - 1), 0)
    refused, _ = await begin(port)
    assert (await refused.readline()).startswith(b"HTTP/1.1 503")
    reader, writer = await begin(port, "authorization: Bearer known\r\n")
    await held(rooms, 2 * (BODY - 1), BODY - 1)
    writer.write(b"x")
    answer = await reader.readuntil(str(BODY).encode())
    assert answer.startswith(b"HTTP/1.1 200")
    first[1].close()
    second[1].write(b"x")
    assert (await second[0].readline()).startswith(b"HTTP/1.1 200")
    await held(rooms, 0, 0)
