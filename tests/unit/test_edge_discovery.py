"""Discovery: what readiness waits for, what is served without, and what is heard of changes."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.parts.edge import until

from tidegate.errors import UpstreamFault
from tidegate.events import ToolDefined, ToolWithdrawn
from tidegate.settings import Naming, Server, Settings, SetTool, Toolset
from tidegate_edge import discovery
from tidegate_edge.calls import Place
from tidegate_edge.catalog import Catalog
from tidegate_edge.discovery import Discovery
from tidegate_edge.listening import DEBOUNCE_S, PACE_S, PATIENCE, PATIENCE_BACK_S, Patience
from tidegate_edge.upstream.port import Caller, Definitions, Talk, Wanted


def tool(name: str) -> bytes:
    return b'{"name":"%b","inputSchema":{"type":"object"}}' % name.encode()


def prompt(name: str) -> bytes:
    return b'{"name":"%b"}' % name.encode()


ECHO = Definitions((tool("echo"),), capabilities=b'{"tools":{"listChanged":true},"prompts":{}}')


class Upstream:
    """Tells what `found` is: definitions, a fault, or None for not a word."""

    def __init__(self, found: Definitions | Exception | None) -> None:
        self.name = "up"
        self.found = found
        self.asked = 0
        self.wanted: list[tuple[Wanted, Caller, bool]] = []
        self.talk: Talk | None = None
        self.mute = False  # refuses to be listened to

    async def definitions(self, timeout_s: float) -> Definitions:
        self.asked += 1
        if self.found is None:
            await asyncio.Event().wait()
        if isinstance(self.found, Exception):
            raise self.found
        assert self.found is not None
        return self.found

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        return client_modern

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None:
        self.wanted.append((wanted, caller, modern))
        if self.mute:
            raise UpstreamFault("up: cannot be heard")
        self.talk = talk
        await asyncio.Event().wait()

    def says(self, method: str) -> None:
        assert self.talk is not None
        self.talk.notified(method, b"{}")


class Found:
    """A discovery under way, with what it recorded, told and made."""

    def __init__(
        self, upstreams: dict[str, Upstream], recorded: dict[tuple[str, str], str], bus: Any = None, **more: Any
    ) -> None:
        servers = {name: Server(url="http://127.0.0.1:1/mcp") for name in upstreams}
        self.events: list[Any] = []
        self.told: list[tuple[str, str]] = []
        self.catalogs: list[Catalog] = []
        given: Any = upstreams
        self.discovery = Discovery(
            Settings(servers=servers, **more),
            Place("t", "r", "e"),
            given,
            self.append,
            recorded,
            lambda server, kind: self.told.append((server, kind)),
            bus,
        )

    async def append(self, events: Any) -> None:
        self.events += events

    @property
    def tools(self) -> list[str]:
        return list(self.catalogs[-1].door("").tools) if self.catalogs else []


@contextlib.asynccontextmanager
async def discovering(
    recorded: dict[tuple[str, str], str] | None = None,
    settings: dict[str, Any] | None = None,
    **found: Definitions | Exception | None,
) -> AsyncIterator[tuple[Found, dict[str, Upstream]]]:
    upstreams = {name: Upstream(one) for name, one in found.items()}
    one = Found(upstreams, recorded or {}, **(settings or {}))
    running = asyncio.create_task(one.discovery.run(one.catalogs.append))
    try:
        yield one, upstreams
    finally:
        running.cancel()
        await asyncio.wait([running])


async def eventually(fact: Callable[[], bool]) -> None:
    await until(fact, 5)


async def test_a_server_that_refuses_or_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "AWAITED_S", 0.2)
    async with discovering(good=ECHO, dead=UpstreamFault("dead: cannot connect"), silent=None) as (one, _):
        assert one.discovery.awaiting == {"good", "dead", "silent"}
        await eventually(lambda: not one.discovery.awaiting)
        assert set(one.discovery.troubles) == {"dead", "silent"}
        assert one.discovery.degraded == {"tools of dead", "tools of silent"}
        assert one.tools == ["good__echo"]


async def test_a_server_that_goes_away_keeps_its_last_list_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with discovering(up=ECHO) as (one, upstreams):
        await eventually(lambda: bool(one.tools))
        upstreams["up"].found = UpstreamFault("up: cannot connect")
        one.discovery.heard("up", "tools")
        await eventually(lambda: bool(one.discovery.troubles))
        assert one.tools == ["up__echo"]
        assert not [event for event in one.events if isinstance(event, ToolWithdrawn)]
        upstreams["up"].found = Definitions((tool("new"),))
        await eventually(lambda: one.tools == ["up__new"])
        assert one.discovery.troubles == {}


async def test_what_a_server_says_has_changed_is_asked_for_at_once_and_told() -> None:
    async with discovering(up=ECHO, other=ECHO) as (one, upstreams):
        up = upstreams["up"]
        await eventually(lambda: up.talk is not None and len(one.catalogs) == 2)
        one.told.clear()
        up.found = Definitions((tool("echo"), tool("more")), capabilities=ECHO.capabilities)
        up.says("notifications/tools/list_changed")
        await eventually(lambda: one.told == [("up", "tools")])
        assert one.tools == ["other__echo", "up__echo", "up__more"]
        assert upstreams["other"].asked == 1


async def test_many_changes_at_once_are_one_question() -> None:
    async with discovering(up=ECHO) as (one, upstreams):
        up = upstreams["up"]
        await eventually(lambda: up.talk is not None)
        one.told.clear()
        for kind in ("tools", "prompts", "resources", "tools"):
            up.says(f"notifications/{kind}/list_changed")
        up.says("notifications/message")
        await eventually(lambda: len(one.told) == 3)
        assert sorted(one.told) == [("up", "prompts"), ("up", "resources"), ("up", "tools")]
        assert up.asked == 2


async def test_a_change_is_told_also_where_nothing_visible_changed_or_the_server_fails_then() -> None:
    async with discovering(up=ECHO) as (one, upstreams):
        await eventually(lambda: bool(one.tools))
        one.told.clear()
        one.discovery.heard("up", "prompts")
        await eventually(lambda: one.told == [("up", "prompts")])
        upstreams["up"].found = UpstreamFault("up: away")
        one.discovery.heard("up", "resources")
        await eventually(lambda: one.told[1:] == [("up", "resources")])
        assert len(one.catalogs) == 1


def followed(every_s: float, until_s: float) -> list[float]:
    """When a server is asked that says all the time, with so long between, that its lists have changed."""
    patience, at_s, asked = Patience(), 1_000.0, []
    while at_s < 1_000.0 + until_s:
        patience.asked(at_s)
        asked.append(at_s)
        at_s += every_s
        at_s += patience.wait_s(at_s)
    return asked


def test_a_server_that_changes_all_the_time_is_not_asked_all_the_time() -> None:
    restless = followed(0.0, 300.0)
    assert all(later - sooner >= PACE_S - 1e-6 for sooner, later in itertools.pairwise(restless))
    assert restless[PATIENCE - 1] - restless[0] < PATIENCE * PACE_S + 1
    late = [at_s for at_s in restless if at_s > 1_200.0]
    assert 95 / PATIENCE_BACK_S <= len(late) <= 105 / PATIENCE_BACK_S


def test_a_change_now_and_then_is_followed_at_once() -> None:
    often = followed(5.0, 600.0)
    assert all(later - sooner == pytest.approx(5.0 + DEBOUNCE_S) for sooner, later in itertools.pairwise(often))


async def test_what_a_request_hears_of_an_unknown_server_or_kind_is_nothing() -> None:
    async with discovering(up=ECHO) as (one, upstreams):
        await eventually(lambda: bool(one.tools))
        one.told.clear()
        one.discovery.heard("other", "tools")
        one.discovery.heard("up", "updated")
        one.discovery.heard("up", "tools")
        await eventually(lambda: bool(one.told))
        assert one.told == [("up", "tools")]
        assert upstreams["up"].asked == 2


async def test_a_server_is_listened_to_for_what_it_says_it_tells() -> None:
    quiet = Definitions((tool("echo"),), capabilities=b'{"tools":{"listChanged":false},"prompts":{"listChanged":1}}')
    async with discovering(up=ECHO, quiet=quiet) as (one, upstreams):
        await eventually(lambda: upstreams["up"].talk is not None and len(one.catalogs) == 2)
        ((wanted, caller, modern),) = upstreams["up"].wanted
        assert (wanted, modern) == (Wanted(tools=True), True)
        assert (caller.tenant, caller.session) == ("default", "")
        assert upstreams["quiet"].wanted == []


async def test_a_server_that_cannot_be_heard_is_asked_all_the_same() -> None:
    async with discovering(up=ECHO) as (one, upstreams):
        upstreams["up"].mute = True
        await eventually(lambda: bool(upstreams["up"].wanted))
        assert one.tools == ["up__echo"]
        assert one.discovery.troubles == {}
        one.discovery.heard("up", "tools")
        await eventually(lambda: upstreams["up"].asked == 2)


async def test_of_a_list_that_is_not_whole_nothing_is_withdrawn_and_the_others_are_taken() -> None:
    both = Definitions((tool("a"), tool("b")), (prompt("p"),), capabilities=ECHO.capabilities)
    async with discovering({("up", "a"): "old", ("up", "gone"): "old"}, up=both) as (one, upstreams):
        await eventually(lambda: one.tools == ["up__a", "up__b"])
        assert [event.tool for event in one.events if isinstance(event, ToolWithdrawn)] == ["gone"]
        one.events.clear()
        upstreams["up"].found = Definitions(
            (tool("c"),),
            (prompt("q"),),
            capabilities=ECHO.capabilities,
            partial={"tools": "up: tools/list has a circle"},
        )
        one.discovery.heard("up", "prompts")
        await eventually(lambda: one.tools == ["up__a", "up__b", "up__c"])
        await eventually(lambda: one.discovery.troubles == {"up": "up: tools/list has a circle"})
        assert list(one.catalogs[-1].door("").prompts) == ["up__q"]
        assert {event.tool for event in one.events if isinstance(event, ToolDefined)} >= {"c"}
        assert not [event for event in one.events if isinstance(event, ToolWithdrawn)]
        await eventually(lambda: set(one.told) >= {("up", "tools"), ("up", "prompts")})


async def test_a_server_of_which_nothing_could_be_had_is_in_trouble() -> None:
    async with discovering(up=Definitions(partial={"tools": "up: tools/list failed"})) as (one, _):
        await eventually(lambda: bool(one.discovery.troubles))
        assert one.catalogs == []


async def test_what_cannot_be_shown_is_named() -> None:
    settings = {
        "naming": Naming(prefix="none"),
        "sets": {"ops": Toolset(tools=(SetTool(server="up", tool="echo"), SetTool(server="up", tool="gone")))},
    }
    async with discovering(settings=settings, up=ECHO, other=ECHO) as (one, _):
        await eventually(lambda: len(one.catalogs) == 2)
        assert one.tools == ["echo"]
        assert one.catalogs[-1].door("").tools["echo"].server == "up"
        assert one.discovery.degraded == {"tool other/echo", "tool up/gone of set ops"}


class Bus:
    """Between edges of this process."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[bytes], None]] = []
        self.messages: list[bytes] = []

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        assert kind == discovery.BUS_KIND
        self.listeners.append(take)

    async def tell_all(self, message: bytes) -> None:
        self.messages.append(message)
        for listener in self.listeners[1:]:  # all but the first edge, which alone speaks here
            listener(message.partition(b"\n")[2])


async def test_what_one_edge_hears_on_a_clients_stream_is_asked_for_by_all_and_passed_on_by_none() -> None:
    bus = Bus()
    async with (
        discovering(settings={"bus": bus}, up=ECHO) as (here, mine),
        discovering(settings={"bus": bus}, up=ECHO) as (there, theirs),
    ):
        await eventually(lambda: mine["up"].talk is not None and theirs["up"].talk is not None)
        here.told.clear()
        there.told.clear()
        mine["up"].says("notifications/tools/list_changed")  # on its own stream: the other edge has one, too
        await eventually(lambda: here.told == [("up", "tools")])
        assert bus.messages == []
        here.discovery.heard("up", "prompts")
        await eventually(lambda: there.told == [("up", "prompts")] == here.told[1:])
        assert (mine["up"].asked, theirs["up"].asked, len(bus.messages)) == (3, 2, 1)
        for nonsense in (b"", b"{}", b'{"server":"up","kinds":["x"]}', b'{"server":"other","kinds":["tools"]}'):
            bus.listeners[1](nonsense)
