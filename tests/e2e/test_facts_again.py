"""What an edge decided by circumstances is decided again from the log alone, and agrees: `why` and replay need it."""

from pathlib import Path

from tests.parts.edge import RunningEdge, Speaker, running_edge
from tests.parts.scripted import scripted, tool

from tidegate.events import CallRequested
from tidegate.policy.bundle import bundle_of
from tidegate.policy.replaying import Past, Replayer, differs, past_of
from tidegate.policy.verdict import Verdict

FILES = {
    "manifest.json": '{"v": 1, "name": "again", "timezone": "Asia/Kathmandu"}',
    "entities.json": """[
      {"uid": {"type": "Agent", "id": "cursor"}, "attrs": {}, "parents": [{"type": "AgentClass", "id": "attended"}]}
    ]""",
    "policies/p.cedar": """
@id("all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("no-leak")
forbid (principal, action in Action::"egress", resource) when { context.taint.contains("read-private") };
@id("office") forbid (principal, action == Action::"up/office", resource)
unless { context has network && context.network.ip.isInRange(ip("203.0.113.0/24")) };
@id("robots") forbid (principal is ServiceAccount, action == Action::"up/people", resource);
@id("late") forbid (principal, action == Action::"up/late", resource)
when { context.time.hour >= 0 && context.args has text && context.args.text like "x*" };
@id("attended") forbid (principal, action == Action::"up/attended", resource)
unless { context.agent.classes.contains("attended") };
@id("fresh") forbid (principal, action == Action::"up/fresh", resource) unless { context.protocol == "2026-07-28" };
@id("watched") @mode("shadow") forbid (principal, action == Action::"up/echo", resource);
@id("asked") @effect("ask") @approver("other") forbid (principal, action == Action::"up/asked", resource);
""",
}
NAMES = ("echo", "send", "people", "office", "late", "attended", "fresh", "asked")
RULES = [
    {"server": "up", "tool": "send", "labels": ["egress"]},
    {"server": "up", "tool": "people", "labels": ["read-private"]},
    {"server": "up", "capture": "full"},
]
AGAIN = bundle_of({path: text.encode() for path, text in FILES.items()})
OTHER = bundle_of(
    {
        "manifest.json": b'{"v": 1, "name": "other"}',
        "policies/p.cedar": b"""
@id("all") permit (principal, action, resource);
@id("home") forbid (principal, action, resource)
unless { context has network && context.network.ip.isInRange(ip("203.0.113.0/24")) };
@id("clean") forbid (principal, action == Action::"up/send", resource) when { context.taint.contains("sensitive") };
""",
    }
)


async def past(edge: RunningEdge) -> list[Past]:
    found = [event for event in await edge.place.events("calls") if isinstance(event, CallRequested)]
    return [past_of(event, event.sealed) for event in found]


def calling(who: Speaker, name: str, text: str = "", address: str = "") -> bytes:
    request = who.calling(f"up__{name}", {"text": text} if text else None)
    header = f"\r\nX-Forwarded-For: {address}\r\n".encode()
    return request.replace(b"\r\n", header, 1) if address else request


async def test_every_decision_by_circumstances_agrees_with_itself_from_its_event_alone(tmp_path: Path) -> None:
    async with scripted() as server:
        server.tools = [tool(name) for name in NAMES]
        more = {"rules": RULES, "trusted_proxies": ["127.0.0.1"]}
        async with running_edge(tmp_path, {"up": {"url": server.url}}, bundle=FILES, **more) as edge:
            alice = edge.place.speaker(user="alice@example.com", agent="cursor")
            bob = edge.place.speaker(user="bob@example.com", agent="crawler")
            robot = edge.place.speaker(user="nightly", agent="nightly")
            for who in (alice, bob, robot):
                for name in ("echo", "send", "attended", "fresh", "asked", "people", "send"):
                    await who.ask(calling(who, name))
                for address in ("203.0.113.9", "198.51.100.1", "", "nonsense"):
                    await who.ask(calling(who, "office", address=address))
                for text in ("xyz", "abc"):
                    await who.ask(calling(who, "late", text))
            calls = await past(edge)
    assert len(calls) == 3 * 13
    decided = [(one.action, one.kind, one.decision, one.reason, one.rules) for one in calls]
    assert ("send", "user", "deny", "forbidden-by-rule", ("no-leak",)) in decided
    assert ("send", "user", "allow", "granted", ("all",)) in decided
    assert ("people", "service", "deny", "forbidden-by-rule", ("robots",)) in decided
    assert ("attended", "user", "deny", "forbidden-by-rule", ("attended",)) in decided
    assert ("late", "user", "deny", "forbidden-by-rule", ("late",)) in decided
    assert ("asked", "user", "ask", "approval-required", ("asked",)) in decided
    assert {one[2] for one in decided if one[0] == "office"} == {"allow", "deny"}
    again = Replayer(AGAIN)
    for one in calls:
        verdict = again.decide(one)
        assert isinstance(verdict, Verdict), (one.action, verdict)
        assert differs(one, verdict) == "", one.action
    other = Replayer(OTHER)
    verdicts = {(one.action, one.facts.address): other.decide(one) for one in calls}
    assert verdicts["echo", ""] == "not-kept"  # no rule of then looked at the address, so it was not kept
    assert verdicts["fresh", ""] == "not-kept"
    told = [verdicts["office", address] for address in ("203.0.113.9", "198.51.100.1", "")]
    assert [verdict.effect for verdict in told if isinstance(verdict, Verdict)] == ["allow", "deny", "deny"]
