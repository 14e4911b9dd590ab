"""A server process that is kept: started, started again with back-off when it ends by itself, ended when it is idle.
What was in flight when it ended fails, and is not sent again. `Room` bounds how many an edge keeps.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from tidegate.errors import UpstreamFault
from tidegate_edge.messages import METHOD_NOT_FOUND, encode
from tidegate_edge.upstream.port import ACKNOWLEDGED, Answer, Outgoing, Paused, Talk, Wanted
from tidegate_edge.upstream.stdio_child import Child, Command
from tidegate_edge.upstream.stdio_handshake import START_S, EraChoice, Spoken, own_meta, shake_hands
from tidegate_edge.upstream.stdio_listening import Listener, Listeners, offers
from tidegate_edge.upstream.stdio_session import StdioSession

BACKOFF_S: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S: Final = 60.0  # a process that lived this long starts again without back-off
SUBSCRIBE_S: Final = 10.0
SET_LEVEL_S: Final = 5.0
GIVEN_UP: Final = "process-given-up"  # by this edge; another may run it
HANDSHAKE_REFUSED: Final = "handshake-refused"  # by a second process: the server speaks the modern era alone

_log = logging.getLogger(__name__)


class ProcessKey(NamedTuple):
    """Whose process; of a shared one only the tenant is told."""

    tenant: str
    subject_id: str = ""
    agent: str = ""
    era: str = ""  # of a second process; "" of the first


class Plan(NamedTuple):
    """How the processes of one server are run."""

    name: str
    command: Command
    era: EraChoice
    shared: bool
    idle_s: float  # 0: never ended for being idle
    edge: str
    paused_s: float
    second: bool = False  # runs beside one that speaks the modern era; see `stdio_eras.py`
    start_s: float = START_S  # so long `initialize` may take


class Kept:
    """One key's process, in as many lives as it takes."""

    def __init__(self, plan: Plan, key: ProcessKey, capabilities: bytes, overheard: Listeners, *, always: bool) -> None:
        self.plan = plan
        self.key = key
        self.always = always  # started again whether somebody asks or not
        self.session: StdioSession | None = None
        self.spoken: Spoken | None = None
        self.ended = False
        self.refusal = ""  # why a second process could not begin: it is not tried again
        self.used_s = asyncio.get_running_loop().time()
        self._capabilities = capabilities
        self._overheard = overheard
        self._era = plan.era
        self._users = 0
        self._listening = 0  # of them
        self._changed = asyncio.Event()  # set and replaced when a session begins or all is over
        self._wanted = asyncio.Event()
        self._why = ""
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def is_working(self) -> bool:
        """Whether somebody waits for an answer: what is paused waits for its client, and listening has no end."""
        return self._users > self._listening

    @property
    def is_idle(self) -> bool:
        return not self._users and not (self.session is not None and self.session.is_busy)

    def start(self, after: "asyncio.Task[None] | None" = None) -> None:
        """`after` is what must have ended before: never two processes of one key at a time."""
        self._keeper = asyncio.create_task(self._keep(after), name=f"stdio {self.plan.name}")

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """It is not ended for being idle, nor to make room, meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self.used_s = asyncio.get_running_loop().time()

    async def ready(self, timeout_s: float) -> StdioSession:
        """A session that can be spoken to. Raises UpstreamFault, with nothing sent."""
        if self.session is not None and not self.session.over.is_set():
            return self.session
        try:
            async with asyncio.timeout(timeout_s):
                while self.session is None or self.session.over.is_set():
                    if self.refusal:
                        raise UpstreamFault(self.refusal, code=HANDSHAKE_REFUSED, sent=False)
                    if self.ended:
                        raise UpstreamFault(f"{self.plan.name}: the process was ended", code=GIVEN_UP, sent=False)
                    self._wanted.set()
                    await self._changed.wait()
        except TimeoutError as error:
            raise self._not_running() from error
        return self.session

    async def end(self, why: str = "") -> None:
        """End the process and everything that is under way in it. Never starts again."""
        self.ended = True
        if why and self.session is not None:
            self.session.fail_all(why)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self._tell_change()

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        with self.used():
            session = self.session
            if session is None or session.over.is_set():
                session, outgoing = await self._ready_for(outgoing)
            assert self.spoken is not None
            if outgoing.modern != self.spoken.modern:
                raise UpstreamFault(
                    f"{self.plan.name}: the process now speaks another revision; call again",
                    code="upstream-era-changed",
                    sent=False,
                )
            if outgoing.log_level and not outgoing.modern and b'"logging"' in self.spoken.capabilities:
                await session.set_level(outgoing.log_level, min(outgoing.timeout_s, SET_LEVEL_S))
            return await session.request(outgoing, talk)

    async def _ready_for(self, outgoing: Outgoing) -> tuple[StdioSession, Outgoing]:
        """A session, and the request with the time that is left for it."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + outgoing.timeout_s
        session = await self.ready(outgoing.timeout_s)
        return session, msgspec.structs.replace(outgoing, timeout_s=round(max(until_s - loop.time(), 0.01), 2))

    async def listen(self, wanted: Wanted, talk: Talk) -> None:
        """Until cancelled, through restarts; returns where the server offers nothing of the kind."""
        failures = 0
        self._listening += 1
        try:
            with self.used():
                while True:
                    began_s = asyncio.get_running_loop().time()
                    try:
                        if not await self._hear(await self.ready(BACKOFF_S[-1]), wanted, talk):
                            return
                    except UpstreamFault as fault:
                        if self.ended:
                            raise
                        _log.info("%s", fault)
                    failures = 1 if asyncio.get_running_loop().time() - began_s > STABLE_S else failures + 1
                    await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
        finally:
            self._listening -= 1

    async def _hear(self, session: StdioSession, wanted: Wanted, talk: Talk) -> bool:
        """In one life of the process. False: it offers nothing of the kind."""
        assert self.spoken is not None
        if self.spoken.modern:
            return await _hear_modern(session, wanted, talk)
        if not offers(self.spoken.capabilities, wanted):
            return False
        await _hear_legacy(session, wanted, talk)
        return True

    # its lives

    async def _keep(self, after: "asyncio.Task[None] | None") -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        try:
            if after is not None:
                await asyncio.wait([after])
            while True:
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                if not self.always:
                    if not self._users:
                        self._wanted.clear()
                    await self._wanted.wait()
                began_s = loop.time()
                gave_in = await self._lived()
                if self.refusal:
                    return
                if gave_in:
                    self._era, attempt = "legacy", 0  # it did not survive the question which era it speaks
                    continue
                attempt = 1 if loop.time() - began_s > STABLE_S else attempt + 1
        finally:
            self.ended = True
            self._tell_change()

    async def _lived(self) -> bool:
        try:
            return await self._live()
        except Exception:  # this owns the process: a fault of ours must not leave it without anybody
            _log.exception("%s: the process could not be kept", self.plan.name)
            return False

    async def _live(self) -> bool:
        """From start to end of one process. True: it ended before it had said what it speaks."""
        name = self.plan.name
        try:
            child = self._child = await Child.start(name, self.plan.command)
        except OSError as error:
            self._why = f"; '{self.plan.command.words[0]}' cannot be run ({error}): is it on PATH, is `cwd` there?"
            _log.warning("%s: the process is not running%s", name, self._why)
            self._refuse(f"{name}: the process is not running{self._why}")
            return False
        session = StdioSession(child, shared=self.plan.shared, edge=self.plan.edge, paused_s=self.plan.paused_s)
        session.overheard = self._overheard
        reading = asyncio.create_task(session.read(), name=f"stdio {name} stdout")
        words = asyncio.create_task(child.hear_errors(), name=f"stdio {name} stderr")
        try:
            spoken = await shake_hands(session, self._era, self._capabilities, self.plan.start_s)
            self.spoken = msgspec.structs.replace(spoken, life=secrets.token_hex(8))
            self._era = "modern" if self.spoken.modern else "legacy"
            self.session = session
            self._wanted.clear()
            self._tell_change()
            await asyncio.wait([reading])
        except UpstreamFault as fault:
            _log.log(logging.INFO if self.plan.second else logging.WARNING, "%s", fault)
            self._refuse(fault.sentence)
            gave_in = session.over.is_set() and self._era == "auto"
            self._era = self.plan.era  # it may be another one that is started next
            return gave_in
        finally:
            self.session = None
            reading.cancel()
            words.cancel()
            await asyncio.shield(_over(child, reading, words))
            self._why = child.why
            self._child = None
            self._tell_change()
        return False

    def _refuse(self, sentence: str) -> None:
        """The first process of the server runs and is spoken to: that a second one cannot be is the server's way."""
        if self.plan.second:
            self.refusal = sentence

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _not_running(self) -> UpstreamFault:
        return UpstreamFault(
            f"{self.plan.name}: the process is not running{self._why or (self._child.why if self._child else '')}",
            code="upstream-unreachable",
            sent=False,
        )


class Room:
    """How many processes an edge keeps, over all its servers, and how many of them for one principal."""

    def __init__(self, most: int, most_per_principal: int) -> None:
        self._most = most
        self._most_per_principal = most_per_principal
        self._kept: dict[Kept, Callable[[Kept], object]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, kept: Kept, give_up: Callable[[Kept], object]) -> None:
        """Give it a place; `give_up` is called when it must make room. Raises UpstreamFault `upstream-busy`."""
        name, mine = kept.plan.name, kept.key[:2]
        leaving = []
        own = [one for one in self._kept if one.key[:2] == mine] if kept.key.subject_id else []
        if len(own) >= self._most_per_principal:
            leaving.append(self._longest_idle(own, name, "limits.processes_per_principal_max"))
        if len(self._kept) - len(leaving) >= self._most:
            leaving.append(self._longest_idle(list(self._kept), name, "limits.processes_max"))
        for one in leaving:
            self._kept.pop(one)(one)
        self._kept[kept] = give_up

    def leave(self, kept: Kept) -> None:
        self._kept.pop(kept, None)

    def _longest_idle(self, among: list[Kept], name: str, limit: str) -> Kept:
        idle = [one for one in among if one.is_idle and not one.always]
        if not idle:
            raise UpstreamFault(
                f"{name}: all {len(among)} processes are in use; try again shortly, or raise {limit}",
                code="upstream-busy",
                sent=False,
            )
        return min(idle, key=lambda one: one.used_s)


async def _over(child: Child, *tasks: "asyncio.Task[None]") -> None:
    await asyncio.wait(tasks)
    await child.end()


async def _hear_legacy(session: StdioSession, wanted: Wanted, talk: Talk) -> None:
    listener = Listener(wanted, talk)
    subscribed = []
    session.listeners.add(listener)
    try:
        for uri in wanted.uris:
            subscribed.append(uri)
            if session.listeners.subscribe(uri):
                await session.ask("resources/subscribe", encode({"uri": uri}), SUBSCRIBE_S)
        talk.notified(ACKNOWLEDGED, b"{}")
        await session.over.wait()
    finally:
        session.listeners.remove(listener)
        for uri in subscribed:
            if session.listeners.unsubscribe(uri) and not session.over.is_set():
                session.forget(session.begin("resources/unsubscribe", encode({"uri": uri})))


async def _hear_modern(session: StdioSession, wanted: Wanted, talk: Talk) -> bool:
    """False: the server does not know subscriptions/listen."""
    notifications = {
        **({"toolsListChanged": True} if wanted.tools else {}),
        **({"promptsListChanged": True} if wanted.prompts else {}),
        **({"resourcesListChanged": True} if wanted.resources else {}),
        **({"resourceSubscriptions": wanted.uris} if wanted.uris else {}),
    }
    params = encode({"_meta": own_meta(), "notifications": notifications})
    under = session.begin("subscriptions/listen", params)
    listener = Listener(wanted, talk, under.number)
    session.listeners.add(listener)
    try:
        answer = await under.turn
    except asyncio.CancelledError:
        session.tell_cancelled(under, "nobody listens any more")
        raise
    finally:
        session.listeners.remove(listener)
        session.forget(under)
    return not (answer is not None and answer.error and str(METHOD_NOT_FOUND).encode() in answer.error)
