"""Two edges on one session store before one scripted server, under rules that ask; and what is said and done there.

Each edge has a log of its own, so what they know of each other comes over the bus, and `stand` writes into both logs
what the policy service would.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parts.edge import MODERN, Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.processes import free_port
from tests.parts.scripted import Scripted, Seen, http, result, scripted, tool
from tests.parts.valkey import running_valkey

from tidegate.chain import Chain
from tidegate.events import (
    ApprovalDenied,
    ApprovalGranted,
    CallCompleted,
    CallRequested,
    QuarantineImposed,
)
from tidegate.ids import now_us, subject_id, uuid7
from tidegate.log.port import Record
from tidegate.policy.approvals import Approval, ApprovalEvent, Approvals, state_key, state_value
from tidegate.secrets import create_secrets, open_secrets

FORM: dict[str, Any] = {"elicitation": {"form": {}}}
PAGE: dict[str, Any] = {"elicitation": {"url": {}}}
NONE: dict[str, Any] = {}
DECISION = "tidegate/decision"
WHY = "Notes can be read by everybody, for ever."
RULES = """
@id("eng-all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("ask-note") @effect("ask") @expires("1h") @reason("Notes can be read by everybody, for ever.")
forbid (principal, action == Action::"up/note", resource);
@id("ask-pay") @effect("ask") @approver("other") @reason("Payments need a second person.")
forbid (principal, action == Action::"up/pay", resource);
@id("ask-wipe") @effect("ask") @approver("ops") @reason("Ops decide what is wiped.")
forbid (principal, action == Action::"up/wipe", resource);
@id("ask-out") @effect("ask") @reason("Documents are asked for.")
forbid (principal, action in [Action::"up/resources/read", Action::"up/prompts/get"], resource);
"""
INSPECTION = """
patterns:
  - {id: key, pattern: 'AKIA[A-Z0-9]{16}', severity: high, arguments: mask, result: mask}
  - {id: address, pattern: '[a-z]+@watched[.]example', severity: low, arguments: alert}
  - {id: word, pattern: 'forbidden-word-[0-9]{4}', severity: high, arguments: block, result: block}
"""
BUNDLE = {
    "manifest.json": '{"v": 1, "name": "approvals"}',
    "policies/p.cedar": RULES,
    "inspection.yaml": INSPECTION,
}
SETS = {"fixed": {"tools": [{"server": "up", "tool": "pay", "arguments": {"to": "the-landlord"}}]}}
_numbers = itertools.count()


def nonce() -> str:
    return f"nonce-{next(_numbers)}-{uuid7()}"


@dataclass
class Person:
    """A client of one person: `at` an edge, with what it can be asked for."""

    edges: list[RunningEdge]
    user: str = "alice@example.com"
    agent: str = "tests"
    speakers: list[Speaker] = field(default_factory=list)

    def __post_init__(self) -> None:
        token = self.edges[0].place.token(user=self.user, agent=self.agent)
        self.speakers = [Speaker(edge.settings.listen, token) for edge in self.edges]

    @property
    def subject_id(self) -> str:
        edge = self.edges[0]
        pepper = open_secrets(edge.settings).pepper(edge.settings.tenant)
        return str(subject_id(pepper, edge.place.issuer.issuer, self.user))

    async def uri_of(self, name: str) -> str:
        """The client's name for a resource."""
        (listed,) = (await self.speakers[0].ask(self.speakers[0].modern("resources/list"))).result["resources"]
        assert listed["name"].endswith(name)
        return str(listed["uri"])

    async def call(
        self,
        name: str,
        arguments: Any,
        *,
        at: int = 0,
        can: dict[str, Any] = FORM,
        state: str | None = None,
        responses: Any = None,
        method: str = "tools/call",
        path: str = "/mcp",
    ) -> Answer:
        """One request; with `state`, the retry that brings an answer."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": can,
            "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
        }
        params: dict[str, Any] = {"_meta": meta}
        if method == "resources/read":
            params["uri"] = name
        else:
            params |= {"name": name, "arguments": arguments}
        if state is not None:
            params["requestState"] = state
        if responses is not None:
            params["inputResponses"] = responses
        speaker = self.speakers[at]
        headers = {"Mcp-Name": name} if method == "resources/read" else {}
        return await speaker.ask(speaker.modern(method, params, headers=headers, path=path), 30)


def yes(reason: str = "") -> dict[str, Any]:
    return {"approval": {"action": "accept", "content": {"approve": True, "reason": reason}}}


NO = {"approval": {"action": "decline"}}
AWAY = {"approval": {"action": "cancel"}}


def asked(answer: Answer) -> tuple[dict[str, Any], str]:
    """(the question's params, the sealed state) of an `input_required`."""
    assert answer.result["resultType"] == "input_required", answer.body
    (question,) = answer.result["inputRequests"].values()
    assert question["method"] == "elicitation/create"
    return question["params"], answer.result["requestState"]


def refusal(answer: Answer) -> dict[str, Any]:
    """What is said of a call that was not made."""
    assert answer.result["isError"], answer.body
    return dict(answer.result["_meta"][DECISION])


@dataclass
class House:
    """Two edges, their server, and all that was stored and sighted."""

    edges: list[RunningEdge]
    up: Scripted

    def person(self, user: str = "alice@example.com", agent: str = "tests") -> Person:
        return Person(self.edges, user, agent)

    def sighted(self, mark: str) -> int:
        """How often the server saw it."""
        return sum(mark.encode() in one.body for one in self.up.seen if one.method != "tools/list")

    async def stored(self, *topics: str) -> list[Any]:
        return [event for edge in self.edges for event in await edge.place.events(*topics)]

    async def steps(self, approval_id: str) -> list[str]:
        """What the histories of both edges say of an approval, in order of time."""
        found = [event for event in await self.stored("control") if getattr(event, "approval_id", "") == approval_id]
        return [type(one).__name__.removeprefix("Approval") for one in sorted(found, key=lambda one: one.time_us)]

    async def decisions(self, mark: str) -> Counter[str]:
        """Of the recorded calls that bear the mark."""
        events = await self.stored("calls")
        return Counter(
            one.decision
            for one in events
            if isinstance(one, CallRequested) and mark.encode() in bytes(one.sealed.arguments)
        )

    async def completions(self, mark: str) -> int:
        events = await self.stored("calls")
        ids = {
            one.call_id
            for one in events
            if isinstance(one, CallRequested) and mark.encode() in bytes(one.sealed.arguments)
        }
        return sum(isinstance(one, CallCompleted) and one.call_id in ids for one in events)

    def known(self, approval_id: str, at: int = 0) -> Approval | None:
        return self.edges[at].edge.approvals.of("acme").get(approval_id)

    async def decide(self, approval_id: str, *, grant: bool, actor: str = "a-second-person") -> None:
        """As the policy service would: the state of both logs says what a person decided."""
        approval = self.known(approval_id)
        assert approval is not None
        common: dict[str, Any] = {"id": uuid7(), "time_us": now_us(), "tenant": "acme", "region": "local"}
        by: dict[str, Any] = {"approval_id": approval_id, "actor": actor, "channel": "api", "reason": "looked at it"}
        event: ApprovalEvent = ApprovalDenied(**common, **by)
        if grant:
            event = ApprovalGranted(**common, **by, expires_us=now_us() + 600_000_000)
        fold = Approvals()
        fold.restore(approval)
        await self.stand(fold.apply(event) or approval)

    async def stand(self, approval: Approval) -> None:
        """Until both edges know of it what `control-state` says."""
        record = Record("control-state", state_key("acme", approval.approval_id), state_value(approval))
        await self._tell(record)
        await until(
            lambda: all(
                (known := self.known(approval.approval_id, at)) is not None and known.state == approval.state
                for at in range(len(self.edges))
            )
        )

    async def stand_for_nothing(self, approval_id: str, requester: str) -> None:
        """The requester's own yes, in the log of both edges: it counts for nothing."""
        for edge, channel in itertools.product(self.edges, ("form", "url", "api")):
            event = ApprovalGranted(
                id=uuid7(),
                time_us=now_us(),
                tenant="acme",
                region="local",
                approval_id=approval_id,
                actor=requester,
                channel=channel,  # type: ignore[arg-type]
                expires_us=now_us() + 600_000_000,
            )
            await edge.log.append([Chain(f"hostile-{uuid7()}").seal(event)])

    @contextlib.asynccontextmanager
    async def quarantined(self, scope: Any, value: str) -> AsyncIterator[None]:
        event = QuarantineImposed(
            id=uuid7(),
            time_us=now_us(),
            tenant="acme",
            region="local",
            quarantine_id=uuid7(),
            scope=scope,
            value=value,
            reason="looked at",
            actor="tests",
        )
        key = f"acme|{event.quarantine_id}".encode()
        held = [edge.edge.quarantines_of("acme") for edge in self.edges]
        await self._tell(Record("control-state", key, Chain(event.quarantine_id).seal(event).value))
        await until(lambda: all(one.get(event.quarantine_id) is not None for one in held))
        try:
            yield
        finally:
            await self._tell(Record("control-state", key, None))
            await until(lambda: all(one.get(event.quarantine_id) is None for one in held))

    async def _tell(self, record: Record) -> None:
        for edge in self.edges:
            await edge.log.append([record])

    @staticmethod
    def is_over(at_us: int) -> bool:
        return now_us() > at_us

    @contextlib.asynccontextmanager
    async def ruled(self, more: str) -> AsyncIterator[None]:
        """With these rules beside the others."""
        await self._publish(BUNDLE | {"policies/more.cedar": more})
        try:
            yield
        finally:
            await self._publish(BUNDLE)

    async def _publish(self, bundle: dict[str, str]) -> None:
        number = max(edge.edge.rulings["acme"].number for edge in self.edges) + 1
        for edge in self.edges:
            await edge.publish(bundle, number)


async def _resources(server: Scripted, seen: Seen, writer: Any) -> None:
    listed = {"resources": [{"uri": "doc://plans", "name": "plans"}], "resultType": "complete"}
    writer.write(http(result(seen, listed | {"ttlMs": 0, "cacheScope": "private"})))


async def _templates(server: Scripted, seen: Seen, writer: Any) -> None:
    listed = {"resourceTemplates": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    writer.write(http(result(seen, listed)))


async def _prompts(server: Scripted, seen: Seen, writer: Any) -> None:
    listed = {"prompts": [{"name": "draft", "arguments": [{"name": "about"}]}], "resultType": "complete"}
    writer.write(http(result(seen, listed | {"ttlMs": 0, "cacheScope": "private"})))


async def _prompt(server: Scripted, seen: Seen, writer: Any) -> None:
    said = [{"role": "user", "content": {"type": "text", "text": json.dumps(seen.params.get("arguments"))}}]
    writer.write(http(result(seen, {"messages": said, "resultType": "complete"})))


async def _read(server: Scripted, seen: Seen, writer: Any) -> None:
    content = {"contents": [{"uri": seen.params["uri"], "text": "the plans"}], "resultType": "complete"}
    writer.write(http(result(seen, content | {"ttlMs": 0, "cacheScope": "private"})))


@contextlib.asynccontextmanager
async def house(root: Path, number: int = 2, **more: Any) -> AsyncIterator[House]:
    """Ready on entry, the bundle ruling at each edge; gone on exit."""
    create_secrets(root / "secrets.json")
    tools = [tool("note"), tool("pay"), tool("wipe"), tool("echo")]
    with running_valkey() as url:
        async with contextlib.AsyncExitStack() as stack:
            up = await stack.enter_async_context(
                scripted(
                    tools=tools,
                    capabilities={"tools": {}, "resources": {}, "prompts": {}},
                    behaviours={
                        "resources/list": _resources,
                        "resources/templates/list": _templates,
                        "resources/read": _read,
                        "prompts/list": _prompts,
                        "prompts/get": _prompt,
                    },
                )
            )
            shared = {
                "public_url": f"http://127.0.0.1:{free_port()}",
                "secrets_file": str(root / "secrets.json"),
                "sessions": url,
                "sets": SETS,
                **more,
            }
            edges: list[RunningEdge] = []
            for name in "abcdefgh"[:number]:
                (root / name).mkdir()
                edge = await stack.enter_async_context(
                    running_edge(root / name, {"up": {"url": up.url}}, bundle=BUNDLE, **shared)
                )
                edges.append(edge)
            await until(lambda: not any(edge.edge.sessions.awaiting for edge in edges))
            yield House(edges, up)


def every(count: int) -> Iterator[int]:
    """The numbers of two edges, in turn."""
    return itertools.islice(itertools.cycle((0, 1)), count)
