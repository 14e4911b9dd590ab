"""Steady callers over both edges, on a thread of their own: each call has a nonce, and what came back is kept by it.

Half of them are modern; the others hold sessions, and open new ones where theirs are gone. They call four servers (one
for each durability, in both eras), well, in vain, slowly, and what is denied. No call is ever repeated. Counterpart:
`balance.py`, which compares what they were told with what was recorded.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import aiohttp
import msgspec
from tests.chaos.stage import MODES, ChaosCluster
from tests.parts.clients.raw import Raw, Told, http_client

Heard = Literal["ok", "tool-error", "denied", "refused", "no answer"]
CALLERS: Final = 16
USERS: Final = 6
ANSWER_DEADLINE_S: Final = 40.0  # over a call's timeout and two of Kafka's
STOP_DEADLINE_S: Final = 60.0
KINDS: Final = ("echo",) * 6 + ("fail", "slow", "denied", "denied")


class Call(NamedTuple):
    """One, as its caller knows it."""

    heard: Heard
    server: str
    edge: str
    at_s: float  # of the answer, since the load began


@dataclass
class Tally:
    """What all callers know."""

    calls: dict[str, Call] = field(default_factory=dict)  # by nonce
    wrong: list[str] = field(default_factory=list)  # answers that fit no call

    def heard(self) -> Counter[str]:
        return Counter(one.heard for one in self.calls.values())

    def well(self) -> int:
        """Answered as they should be, whatever the answer."""
        return sum(one.heard in ("ok", "tool-error", "denied") for one in list(self.calls.values()))


class Patient(Raw):
    """Takes an answer that took its time as well: a stream whose last event it is."""

    async def _post(self, base: str, method: str, params: dict[str, Any], headers: dict[str, str]) -> Told:
        self._ids += 1
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params})
        try:
            async with self._client.post(f"{base}/mcp", data=body, headers=self._headers(headers)) as response:
                session = response.headers.get("Mcp-Session-Id", "")
                return Told(response.status, message_in(await response.read(), self._ids), session)
        except (aiohttp.ClientError, TimeoutError):
            return Told(0, {})


def message_in(body: bytes, request_id: int) -> dict[str, Any]:
    """The response, plain or as an event of a stream; {} where the stream broke off before it."""
    if not body:
        return {}
    if body[:1] == b"{":
        return dict(msgspec.json.decode(body))
    for line in body.splitlines():
        if line.startswith(b"data:") and len(line) > 6:
            message = msgspec.json.decode(line[5:])
            if message.get("id") == request_id:
                return dict(message)
    return {}


class Caller:
    """One, who goes to the other edge where nobody answers."""

    def __init__(self, number: int, raw: Patient, load: "Load") -> None:
        self._raw = raw
        self._load = load
        self._name = f"caller {number}"
        self._at = number
        self._order = random.Random(f"{load.seed} {number}")
        self._is_legacy = number % 2 == 1
        self._session = ""
        self._count = 0

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._order.uniform(0.0, self._load.period_s))
        while not self._load.stopping.is_set():
            began_s = clock()
            if not self._is_legacy or await self._has_session():
                await self._call()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, self._load.period_s - (clock() - began_s))):
                    await self._load.told_to_stop()

    async def _has_session(self) -> bool:
        if not self._session:
            try:
                self._session = await self._raw.initialize(self._load.bases[self._at % 2])
            except AssertionError:  # no edge, or no Valkey: later, elsewhere
                self._at += 1
        return bool(self._session)

    async def _call(self) -> None:
        kind, server = self._order.choice(KINDS), self._order.choice(tuple(MODES))
        tool = "echo" if kind == "denied" else kind
        self._count += 1
        nonce = f"{self._load.name} {self._name} {self._count}"
        more: dict[str, Any] = {"path": "/etc/passwd"} if kind == "denied" else {"path": "/srv/a"}
        if kind == "slow":
            more["seconds"] = round(self._order.uniform(0.1, 1.5), 3)
        edge = self._at % 2
        session = self._session if self._is_legacy else ""
        told = await self._raw.call(self._load.bases[edge], f"{server}__{tool}", session, nonce=nonce, **more)
        heard = heard_of(told)
        self._load.keep(nonce, Call(heard, server, f"edge-{edge}", time.monotonic() - self._load.began_s))
        if heard in ("ok", "tool-error", "denied") and heard != _expected(kind):
            self._load.tally.wrong.append(f"{nonce}: {server}/{kind}: {heard}: {str(told.message)[:300]}")
        if told.status == 404 and self._is_legacy:
            self._session = ""
        if heard == "no answer" or told.status == 503 or self._order.random() < 0.1:
            self._at += 1


def _expected(kind: str) -> str:
    return {"fail": "tool-error", "denied": "denied"}.get(kind, "ok")


def heard_of(told: Told) -> Heard:
    """A decision and an error are told apart: an `isError` of the server's is an answer, not a refusal."""
    if not told.status or (told.status == 200 and not told.message):
        return "no answer"
    if told.is_ok:
        return "ok"
    if told.decision:
        return "denied" if told.decision.get("decision") == "deny" else "refused"
    return "tool-error" if "result" in told.message else "refused"


class Load:
    """The callers, from `running_load` on."""

    def __init__(self, cluster: ChaosCluster, name: str, rate: float, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.tally = Tally()
        self.period_s = CALLERS / rate
        self.bases = [edge.base for edge in cluster.edges]
        self.began_s = time.monotonic()
        self.stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._failed: list[Exception] = []
        self._tokens: Sequence[str] = [cluster.token_for(f"user{number}@example.com") for number in range(USERS)]
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def keep(self, nonce: str, call: Call) -> None:
        self.tally.calls[nonce] = call

    async def told_to_stop(self) -> None:
        await self._stop.wait()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No further call; those under way are answered first."""
        self.stopping.set()
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_DEADLINE_S)
        assert not self._thread.is_alive(), "callers did not end"
        assert not self._failed, f"the callers failed: {self._failed[0]!r}"

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._callers())
        except Exception as error:  # told to whoever stops the load
            self._failed.append(error)
        self._loop.close()

    async def _callers(self) -> None:
        async with http_client(ANSWER_DEADLINE_S) as client:
            await asyncio.gather(*(self._caller(number, client).run() for number in range(CALLERS)))

    def _caller(self, number: int, client: aiohttp.ClientSession) -> Caller:
        return Caller(number, Patient(client, self._tokens[number % USERS]), self)


@contextlib.contextmanager
def running_load(cluster: ChaosCluster, name: str, rate: float, seed: int) -> Iterator[Load]:
    """About `rate` calls a second inside the block; on exit every call has come to its end."""
    load = Load(cluster, name, rate, seed)
    load.start()
    try:
        yield load
    finally:
        load.stop()
