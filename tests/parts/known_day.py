"""A day at a company, small enough to know every answer by heart: what analytics and dashboards are asked about.

Alice (eng) works with claude-code in session s1, Bob (eng) with cursor in s2, Carol (sales) with night-batch in s3.
`git` reads, `files` is sensitive, `pay` is egress. Times are minutes before now, so that questions about "the last
day" have answers.
"""

from typing import Any, NamedTuple

from tests.parts.audit_events import abandoned, completed, delivered, finding, requested

from tidegate.analytics.port import Analytics
from tidegate.chain import Chain
from tidegate.events import (
    AnyEvent,
    ApprovalDenied,
    ApprovalGranted,
    ApprovalRequested,
    BundleActivated,
    CallRequested,
    Finding,
    RequestRefused,
    Sealed,
    Shadowed,
    ToolDefined,
)
from tidegate.ids import uuid7
from tidegate.log.port import Record
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

MINUTE_US = 60_000_000
DAY_MIN = 24 * 60
TOKEN = Finding(rule="token", severity="medium", action="mask", direction="result", count=1)
WATCHED = Shadowed(bundle="c0c0", release=4, decision="deny", reason="forbidden-by-rule", rules=("no-log",))
CARD = Finding(rule="card", severity="critical", action="block", direction="arguments", count=2)


class Person(NamedTuple):
    login: str
    subject_id: str
    agent: str
    session_id: str
    groups: tuple[str, ...]


ALICE = Person("alice@example.com", "5ub-alice", "claude-code", "s1", ("eng",))
BOB = Person("bob@example.com", "5ub-bob", "cursor", "s2", ("eng",))
CAROL = Person("carol@example.com", "5ub-carol", "night-batch", "s3", ("sales",))
LABELS = {"git": ("read-only",), "files": ("sensitive",), "pay": ("egress",)}


class Day:
    """The records of the day, made once for a moment `now`."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self._chain = Chain("edge-1.spool.1")
        self.events: list[AnyEvent] = []
        self._work()
        self._refusals()
        self._troubles()
        self._around()
        self._approvals()

    def records(self) -> list[Record]:
        """As the log holds them, findings of the detector included."""
        told = finding("f1nd1ng", session_id="s1", subject_id="5ub-alice", call_ids=["out-1"], severity="high")
        return [*[self._chain.seal(event) for event in self.events], Record("detections", b"acme|s1", told)]

    def _at(self, minutes_ago: float) -> int:
        return self._now_us - int(minutes_ago * MINUTE_US)

    def _request(self, call_id: str, minutes_ago: float, who: Person, tool: str, **others: Any) -> CallRequested:
        server, target = tool.split("/")
        own = {
            "subject_id": who.subject_id,
            "agent": who.agent,
            "session_id": who.session_id,
            "server": server,
            "target": target,
            "labels": LABELS[server],
            "rules": (f"allow-{server}",),
            "arguments_bytes": 100,
            "fingerprints": (),
            "findings": (),
            "sealed": Sealed(subject=who.login.partition("@")[0], login=who.login),
        }
        return requested(call_id, self._at(minutes_ago), **(own | others))

    def _call(
        self, call_id: str, minutes_ago: float, who: Person, tool: str, *, ms: int = 10, asked: Any = None, **ended: Any
    ) -> None:
        request = self._request(call_id, minutes_ago, who, tool, **(asked or {}))
        same = {name: getattr(request, name) for name in ("agent", "session_id", "labels", "rules", "arguments_bytes")}
        times = {"policy_us": 20, "upstream_us": ms * 900, "total_us": ms * 1_000}
        own = {"fingerprints": (), "findings": (), "masked": 0, "result_bytes": 1_000, "sealed": Sealed()}
        self.events += [request, completed(request, **(same | times | own | ended))]

    def _refuse(self, call_id: str, minutes_ago: float, who: Person, tool: str, decision: str, **others: Any) -> None:
        self.events.append(self._request(call_id, minutes_ago, who, tool, decision=decision, **others))

    def _work(self) -> None:
        for number in range(1, 6):
            asked = {"shadows": (WATCHED,)} if number <= 2 else None
            self._call(f"log-{number}", 61 - number, ALICE, "git/git_log", ms=10 * number, asked=asked)
        self._call("log-old", 40 * DAY_MIN, ALICE, "git/git_log")
        self._call("read-1", 50, ALICE, "files/read_file", result_bytes=50_000, fingerprints=("fp1", "fp2"))
        self._call("read-2", 49, ALICE, "files/read_file", result_bytes=50_000, findings=(TOKEN,), masked=1)
        self._call("out-1", 48, ALICE, "pay/send_payment", asked={"fingerprints": ("fp1",)})
        self._call("out-2", 40, CAROL, "pay/send_payment", ms=200, asked={"arguments_bytes": 5_000})

    def _refusals(self) -> None:
        not_granted = {"reason": "tool-not-granted", "rules": (), "message": "You may not read files."}
        self._refuse("no-1", 30, BOB, "files/read_file", "deny", **not_granted)
        self._refuse("no-2", 29, BOB, "files/read_file", "deny", **not_granted)
        self._refuse("no-3", 28, BOB, "files/write_file", "deny", reason="forbidden", rules=("forbid-write",))
        self._refuse("ask-1", 27, CAROL, "pay/send_payment", "ask", reason="approval-needed", rules=("ask-pay",))
        self._refuse("slow-1", 26, CAROL, "pay/send_payment", "limited", stage="limit", reason="rate-limit", rules=())

    def _troubles(self) -> None:
        late: dict[str, Any] = {"outcome": "timeout", "result_bytes": 0}
        self._call("late-1", 25, CAROL, "pay/send_payment", ms=5_000, **late)
        self._call("bad-1", 24, BOB, "git/git_log", outcome="tool-error")
        stopped: dict[str, Any] = {
            "outcome": "blocked",
            "stage": "inspection",
            "reason": "arguments-blocked",
            "result_bytes": 0,
        }
        self._call("stop-1", 23, ALICE, "files/write_file", asked={"findings": (CARD,)}, **stopped)
        lost = self._request("lost-1", 22, BOB, "git/git_log")
        same: dict[str, Any] = {name: getattr(lost, name) for name in ("subject_id", "agent", "session_id")}
        self.events += [lost, abandoned(lost, **same)]
        self.events.append(self._request("open-1", 0.2, BOB, "git/git_log"))

    def _around(self) -> None:
        """What is no call: definitions, a release, a malformed request."""
        old, new = self._at(35 * DAY_MIN), self._at(20)
        common: dict[str, Any] = {"tenant": "acme", "region": "eu"}
        tools = ("git/git_log", "files/read_file", "files/write_file", "pay/send_payment", "git/git_blame")
        for tool in tools:
            server, target = tool.split("/")
            self.events.append(
                ToolDefined(id=uuid7(old), time_us=old, server=server, tool=target, digest="d1", **common)
            )
        changed: dict[str, Any] = {"server": "pay", "tool": "send_payment", "digest": "d2", "previous": "d1"}
        self.events += [
            ToolDefined(id=uuid7(new), time_us=new, **changed, **common),
            *[
                BundleActivated(id=uuid7(new), time_us=new, edge=e, ring="main", number=n, digest="b0b0", **common)
                for e, n in (("edge-1", 3), ("edge-2", 2))
            ],
            RequestRefused(
                id=uuid7(new),
                time_us=new,
                subject_id=BOB.subject_id,
                agent=BOB.agent,
                session_id="",
                edge="edge-1",
                method="tools/call",
                reason="malformed",
                message="not JSON",
                status=400,
                **common,
            ),
        ]

    def _approvals(self) -> None:
        """Of Carol's payments: one was approved after two minutes, one refused after four, one is waited for."""
        common: dict[str, Any] = {"tenant": "acme", "region": "eu"}
        asked: dict[str, Any] = {"method": "tools/call", "server": "pay", "target": "send_payment", "edge": "edge-1"}
        asked |= {"subject_id": CAROL.subject_id, "agent": CAROL.agent, "session_id": CAROL.session_id, "binding": "b"}
        for number, after_min in enumerate((2, 4, 0)):
            at, approval_id = self._at(27 + number), f"ap-{number}"
            decided = at + after_min * MINUTE_US
            own: dict[str, Any] = asked | {"call_id": f"ask-{number}", "root_call_id": f"ask-{number}"}
            self.events.append(
                ApprovalRequested(
                    id=uuid7(at), time_us=at, approval_id=approval_id, expires_us=at + 60 * MINUTE_US, **own, **common
                )
            )
            by: dict[str, Any] = {"approval_id": approval_id, "actor": BOB.subject_id, "channel": "api"} | common
            if number == 0:
                self.events.append(
                    ApprovalGranted(id=uuid7(decided), time_us=decided, expires_us=decided + 60 * MINUTE_US, **by)
                )
            elif number == 1:
                self.events.append(ApprovalDenied(id=uuid7(decided), time_us=decided, **by))


async def live_through(analytics: Analytics, now_us: int) -> None:
    """The day into an empty database that was migrated, and two roots: one found whole, one broken."""
    batch = delivered(Day(now_us).records())
    await store(analytics, open_batch(batch), batch)
    roots: dict[str, Any] = {"sealer": ["s", "s"], "number": [1, 2], "event_id": ["r1", "r2"], "events": [10, 20]}
    await analytics.insert("tidegate.roots", roots | {"sealed_at": [now_us - MINUTE_US] * 2})
    checks: dict[str, Any] = {"sealer": ["s", "s"], "number": [1, 2], "event_id": ["c1", "c2"], "wrong": [0, 3]}
    await analytics.insert("tidegate.checks", checks | {"verdict": ["whole", "broken"], "checked_at": [now_us] * 2})
