"""Events as production writes them, for measuring their ingestion: calls of several tenants, in unbroken chains.

A call is a request and, where it was allowed, a completion; about 1.2 kB an event. The same seed gives the same calls.
Counterpart: `ingest.py`.
"""

import random
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

import msgspec

from tidegate.chain import Chain
from tidegate.events import CallCompleted, CallRequested, DecisionInputs, Finding, Sealed
from tidegate.ids import uuid7
from tidegate.log.port import Record

TENANTS: Final = ("acme", "globex", "initech", "umbrella")
AGENTS: Final = ("claude-code", "support-desk", "nightly-report", "triage", "ops-runbooks")
SERVERS: Final = ("git", "tracker", "wiki", "warehouse", "mailer", "calendar", "files", "billing")
TOOLS_PER_SERVER: Final = 5
SUBJECTS_PER_TENANT: Final = 50
WRITERS: Final = 3
ARGUMENTS_BYTES: Final = 120  # about
RESULT_BYTES: Final = 200  # about
DENIED: Final = 0.04
FOUND: Final = 0.05  # of the calls inspection finds something in
TEXT: Final = (
    "release notes for the quarter mention a migration of invoices customers asked about the delivery of spare parts "
    "please summarise what changed between revisions and who approved each of them before the weekend deployment"
)
WORDS: Final = TEXT.split()


class Calls:
    """Records of one call after another. `begin_us`: when the first was requested; a thousand a second from then on."""

    def __init__(self, begin_us: int, seed: int = 4) -> None:
        self._random = random.Random(seed)
        self._chains = [Chain(f"edge-{number}.{uuid7()}.1") for number in range(WRITERS)]
        self._at_us = begin_us
        self._bundle = sha256(b"bundle").hexdigest()
        self._catalogs = {server: sha256(server.encode()).hexdigest() for server in SERVERS}
        self._rules = tuple(f"allow-{server}-readers" for server in SERVERS)

    def records(self) -> Iterator[Record]:
        """Without end."""
        while True:
            yield from self._call()

    def _call(self) -> list[Record]:
        draw = self._random
        self._at_us += draw.randrange(200, 1_800)
        chain, at_us = draw.choice(self._chains), self._at_us
        denied, found = draw.random() < DENIED, draw.random() < FOUND
        same = self._dimensions(chain.writer.split(".", 1)[0], denied)
        records = [chain.seal(self._requested(same, at_us, found=found))]
        if not denied:
            records.append(chain.seal(self._completed(same, at_us, found=found)))
        return records

    def _dimensions(self, edge: str, denied: bool) -> dict[str, Any]:
        draw = self._random
        tenant, agent, server = draw.choice(TENANTS), draw.choice(AGENTS), draw.choice(SERVERS)
        number = draw.randrange(SUBJECTS_PER_TENANT)
        call_id = uuid7(self._at_us)
        return {
            "tenant": tenant,
            "region": "eu",
            "call_id": call_id,
            "root_call_id": call_id,
            "requested_us": self._at_us,
            "subject_id": sha256(f"{tenant}|{number}".encode()).hexdigest()[:32],
            "agent": agent,
            "session_id": sha256(f"{tenant}|{number}|{agent}".encode()).hexdigest()[:32],
            "protocol": "2026-07-28",
            "edge": edge,
            "method": "tools/call",
            "server": server,
            "target": f"{server}_tool_{draw.randrange(TOOLS_PER_SERVER)}",
            "mode": "spool",
            "decision": "deny" if denied else "allow",
            "reason": "tool-not-granted" if denied else "permitted",
            "message": "This tool is not granted to you." if denied else "",
            "rules": () if denied else (f"allow-{server}-readers",),
            "bundle": self._bundle,
            "labels": ("read-only",),
        }

    def _requested(self, same: dict[str, Any], at_us: int, *, found: bool) -> CallRequested:
        arguments = self._json(ARGUMENTS_BYTES)
        login = f"{same['subject_id'][:6]}@{same['tenant']}.example"
        return CallRequested(
            id=uuid7(at_us),
            time_us=at_us + 300,
            inputs=DecisionInputs(
                bundle=self._bundle,
                release=17,
                catalog=self._catalogs[same["server"]],
                groups=("engineering", "oncall"),
                labels=("read-only",),
                now_us=at_us,
                arguments_kept=not found,
            ),
            findings=(self._finding("arguments"),) if found else (),
            arguments_bytes=len(arguments),
            arguments_digest=sha256(arguments).hexdigest(),
            sealed=Sealed(
                issuer=f"https://idp.{same['tenant']}.example",
                subject=same["subject_id"][:12],
                login=login,
                claimed_client="claude-code 3.1",
                arguments=msgspec.Raw(arguments),
            ),
            **same,
        )

    def _completed(self, same: dict[str, Any], at_us: int, *, found: bool) -> CallCompleted:
        result, took_us = self._json(RESULT_BYTES), int(self._random.expovariate(1 / 40_000)) + 900
        return CallCompleted(
            id=uuid7(at_us + took_us),
            time_us=at_us + took_us,
            outcome="tool-error" if self._random.random() < 0.02 else "ok",
            completed_us=at_us + took_us,
            policy_us=self._random.randrange(30, 90),
            upstream_us=took_us - 600,
            total_us=took_us,
            findings=(self._finding("result"),) if found else (),
            masked=1 if found else 0,
            arguments_bytes=ARGUMENTS_BYTES,
            result_bytes=len(result),
            result_digest=sha256(result).hexdigest(),
            sealed=Sealed(result=msgspec.Raw(result)),
            **same,
        )

    def _finding(self, direction: Any) -> Finding:
        return Finding(rule="card-number", severity="high", action="mask", direction=direction, count=1)

    def _json(self, length: int) -> bytes:
        words: list[str] = []
        size = 60
        while size < length:
            word = self._random.choice(WORDS)
            words.append(word)
            size += len(word) + 1
        text = {"id": self._random.getrandbits(48), "ref": f"{self._random.getrandbits(64):x}", "text": " ".join(words)}
        return msgspec.json.encode(text)
