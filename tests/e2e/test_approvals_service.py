"""Approvals in the policy service: asked for on the log as an edge asks, decided over real HTTP with real tokens, and
what `control-state` then holds.
"""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.kafka import Kafka
from tests.parts.policy_service import Running, digest_of, running, settings_for, until, variant

from tidegate.chain import Chain, open_event
from tidegate.claims import Principal, Refused
from tidegate.errors import LogUnavailable
from tidegate.events import (
    ApprovalConsumed,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRequested,
    Event,
    QuarantineImposed,
    Sealed,
)
from tidegate.ids import now_us, subject_id, uuid7
from tidegate.log.opening import open_log
from tidegate.log.port import EventLog, Record
from tidegate.policy.approvals import Approval, Approvals, approval_in, read_state, state_key, state_value
from tidegate.policy.signing import ensure_signing_key
from tidegate.privacy.keys import SubjectKey, Wrapping, seal, topic_key
from tidegate.privacy.master import open_wrapping
from tidegate.secrets import open_secrets
from tidegate.settings import Settings
from tidegate_policy import approvals_api
from tidegate_policy.approvals import Person
from tidegate_policy.problems import ApiFault
from tidegate_policy.service import create_policy, writer_id

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE_US = 60_000_000
ALICE = "alice@example.com"
_edges = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Shared: others' questions stand beside a test's own."""
    async with running(settings_for(tmp_path_factory.mktemp("shared"))) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def alone(tmp_path: Path) -> AsyncIterator[Running]:
    """Where a test looks at all that there is, or changes what all would meet."""
    async with running(settings_for(tmp_path)) as served:
        yield served


def someone(served: Running, user: str) -> str:
    """The subject id under which the API knows the person."""
    return subject_id(open_secrets(served.settings).pepper("acme"), served.issuer.issuer, user)


def common(at_us: int = 0) -> dict[str, Any]:
    return {"id": uuid7(), "time_us": at_us or now_us(), "tenant": "acme", "region": "local"}


def question(requester: str, approver: str = "other", **more: Any) -> ApprovalRequested:
    """Asked now, for ten minutes."""
    asked_us = more.pop("asked_us", now_us())
    arguments = msgspec.Raw(b'{"to":"supplier-ink","amount":900.10}')
    fields: dict[str, Any] = {
        "approval_id": uuid7(),
        "binding": "b1",
        "subject_id": requester,
        "agent": "claude-code",
        "session_id": "s1",
        "method": "tools/call",
        "server": "payments",
        "target": "pay",
        "call_id": uuid7(),
        "root_call_id": "r1",
        "rules": ("large",),
        "message": "A second person looks at large payments.",
        "approver": approver,
        "expires_us": asked_us + 10 * MINUTE_US,
        "edge": "e1",
        "sealed": Sealed(login=ALICE, arguments=arguments),
    }
    return ApprovalRequested(**common(asked_us), **(fields | more))


async def record(log: EventLog, *events: Any) -> None:
    """As an edge would: into the history alone."""
    chain = Chain(f"edge-{next(_edges)}.1")
    await log.append([chain.seal(event) for event in events])


async def asked(served: Running, approver: str = "other", **more: Any) -> str:
    """The id of a question of Alice's that the service has heard."""
    event = question(more.pop("requester", None) or someone(served, ALICE), approver, **more)
    await record(served.log, event)
    await until(lambda: served.opened.service.approver.approvals.get(event.approval_id) is not None)
    return event.approval_id


async def states(log: EventLog) -> dict[str, Approval]:
    """What an edge that boots now reads of approvals."""
    found: dict[str, Approval] = {}
    subscription = await log.follow(("control-state",))
    try:
        while not subscription.caught_up:
            for one in await subscription.poll(1_000, 0.2):
                if (name := approval_in(one.key)) and one.value is None:
                    found.pop(name, None)
                elif name and one.value is not None:
                    found[name] = read_state(one.value)
    finally:
        await subscription.close()
    return found


async def history(log: EventLog, approval_id: str) -> list[Event]:
    found: list[Event] = []
    subscription = await log.follow(("control",))
    try:
        while not subscription.caught_up:
            records = await subscription.poll(1_000, 0.2)
            found += [open_event(one.value or b"") for one in records if one.key.decode().endswith(approval_id)]
    finally:
        await subscription.close()
    return found


async def stands(log: EventLog, approval_id: str, state: str) -> None:
    """Wait until `control-state` says so; "": says nothing of it."""

    async def says_so() -> bool:
        found = (await states(log)).get(approval_id)
        return (found.state if found else "") == state

    await until(says_so, 30)


async def test_what_edges_ask_is_shown_with_its_arguments_and_stands_on_the_state_for_edges_that_boot(
    alone: Running,
) -> None:
    approval_id = await asked(alone)
    status, listed = await alone.ask("GET", "/api/v1/approvals")
    assert status == 200
    assert [(one["approval_id"], one["state"], one["login"], one["may_decide"]) for one in listed] == [
        (approval_id, "pending", ALICE, True)
    ]
    assert "arguments" not in listed[0]
    status, shown = await alone.ask("GET", f"/api/v1/approvals/{approval_id}")
    assert shown["arguments"] == {"to": "supplier-ink", "amount": 900.10}
    assert (shown["message"], shown["rules"], shown["shut"]) == (
        "A second person looks at large payments.",
        ["large"],
        "",
    )
    await stands(alone.log, approval_id, "pending")
    (stored,) = (await states(alone.log)).values()
    assert (stored.binding, stored.agent, stored.server, stored.target) == ("b1", "claude-code", "payments", "pay")


async def test_an_administrator_grants_once_and_the_edges_learn_what_stands(alone: Running) -> None:
    approval_id = await asked(alone)
    status, granted = await alone.ask(
        "POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant", "reason": "looks right"}
    )
    assert (status, granted["state"], granted["decision"]["reason"]) == (200, "granted", "looks right")
    assert granted["decision"]["actor"] == someone(alone, "root@example.com")
    stored = (await states(alone.log))[approval_id]
    assert stored.state == "granted"
    assert stored.granted is not None
    ten_minutes = stored.granted.at_us + 10 * MINUTE_US
    assert stored.expires_us == ten_minutes, "it may be used for as long as the question stood, from the decision on"
    assert [type(event) for event in await history(alone.log, approval_id)] == [ApprovalRequested, ApprovalGranted]
    assert (await alone.ask("GET", "/api/v1/approvals"))[1] == []
    assert [one["state"] for one in (await alone.ask("GET", "/api/v1/approvals?state=all"))[1]] == ["granted"]


async def test_a_denial_stands_with_its_reason_until_the_question_is_over(service: Running) -> None:
    approval_id = await asked(service, expires_us=now_us() + 1_500_000)
    status, denied = await service.ask(
        "POST", f"/api/v1/approvals/{approval_id}", {"decision": "deny", "reason": "not this supplier"}
    )
    assert (status, denied["state"], denied["decision"]["decision"]) == (200, "denied", "denied")
    stored = (await states(service.log))[approval_id]
    assert stored.denied is not None
    assert stored.denied.reason == "not this supplier"
    await stands(service.log, approval_id, "")
    assert [type(event) for event in await history(service.log, approval_id)] == [ApprovalRequested, ApprovalDenied]


@pytest.mark.parametrize("approver", ["other", "finance-leads"])
async def test_the_requester_never_decides_where_the_rule_wants_another(service: Running, approver: str) -> None:
    approval_id = await asked(service, approver)
    for groups in (("finance-leads",), ("tidegate-admins", "finance-leads")):
        mine = service.token(*groups, user=ALICE)
        status, shown = await service.ask("GET", f"/api/v1/approvals/{approval_id}", token=mine)
        assert (status, shown["may_decide"]) == (200, False)
        for decision in ("grant", "deny"):
            status, problem = await service.ask(
                "POST", f"/api/v1/approvals/{approval_id}", {"decision": decision}, token=mine
            )
            assert (status, problem["code"]) == (403, "requester-may-not-approve")
    assert (await states(service.log)).get(approval_id) is None or (await states(service.log))[
        approval_id
    ].state == "pending"


async def test_what_is_kept_masked_and_sent_in_full_can_be_denied_alone(service: Running) -> None:
    approval_id = await asked(service, "", masked=True)
    path = f"/api/v1/approvals/{approval_id}"
    assert (await service.ask("GET", path))[1]["masked"] is True
    for token in (service.token("eng", user=ALICE), service.token("tidegate-admins")):
        status, problem = await service.ask("POST", path, {"decision": "grant"}, token=token)
        assert (status, problem["code"]) == (409, "approval-arguments-masked")
    status, denied = await service.ask("POST", path, {"decision": "deny"})
    assert (status, denied["state"]) == (200, "denied")


async def test_the_requester_decides_where_the_rule_lets_them(service: Running) -> None:
    approval_id = await asked(service, "")
    status, granted = await service.ask(
        "POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant"}, token=service.token("eng", user=ALICE)
    )
    assert (status, granted["state"]) == (200, "granted")


async def test_members_of_the_named_group_see_and_decide_theirs_and_nothing_else(alone: Running) -> None:
    theirs, others, own = await asked(alone, "finance-leads"), await asked(alone), await asked(alone, "hr-leads")
    carol = alone.token("finance-leads", user="carol@example.com")
    status, listed = await alone.ask("GET", "/api/v1/approvals", token=carol)
    assert [one["approval_id"] for one in listed] == [theirs]
    for hidden in (others, own, "no-such-approval"):
        for method, body in (("GET", None), ("POST", {"decision": "grant"})):
            status, problem = await alone.ask(method, f"/api/v1/approvals/{hidden}", body, token=carol)
            assert (status, problem["code"]) == (404, "approval-unknown"), "what is not theirs is as if it were not"
    for path in ("/api/v1/quarantines", "/api/v1/bundles", "/api/v1/edges", "/api/v1/erasures"):
        assert (await alone.ask("GET", path, token=carol))[0] == 403
    status, granted = await alone.ask("POST", f"/api/v1/approvals/{theirs}", {"decision": "grant"}, token=carol)
    assert (status, granted["decision"]["actor"]) == (200, someone(alone, "carol@example.com"))


def put_in(kind: str, name: str, *groups: str) -> dict[str, Any]:
    """An entity of entities.json."""
    return {
        "uid": {"type": kind, "id": name},
        "attrs": {},
        "parents": [{"type": "Group", "id": group} for group in groups],
    }


async def with_groups(served: Running, name: str, *entities: dict[str, Any]) -> str:
    """The digest of a bundle of these entities, released."""
    files = variant(name, **{"entities.json": msgspec.json.encode(entities).decode()})
    status, made = await served.ask("POST", "/api/v1/bundles", {"files": files})
    assert status == 201, made
    return digest_of(files)


async def test_members_of_groups_within_the_named_one_decide_as_the_bundle_that_asked_has_them(alone: Running) -> None:
    nested = await with_groups(
        alone,
        "nested",
        put_in("Group", "emea-leads", "finance-leads"),
        put_in("Group", "london-leads", "emea-leads"),
        put_in("User", "dan@example.com", "emea-leads"),
    )
    flat = await with_groups(alone, "flat", put_in("Group", "london-leads", "finance"))
    by_nested = [await asked(alone, "finance-leads", bundle=nested) for _ in range(2)]
    by_others = [await asked(alone, "finance-leads", bundle=flat), await asked(alone, "finance-leads", bundle="gone")]
    carol, dan = alone.token("london-leads", user="carol@example.com"), alone.token("eng", user="dan@example.com")
    for token, theirs in ((carol, by_nested[0]), (dan, by_nested[1])):
        status, listed = await alone.ask("GET", "/api/v1/approvals", token=token)
        assert {one["approval_id"] for one in listed} >= {theirs}
        assert not {one["approval_id"] for one in listed} & set(by_others), "their bundles do not say so"
        assert (await alone.ask("GET", f"/api/v1/approvals/{theirs}", token=token))[1]["may_decide"] is True
        for hidden in by_others:
            status, problem = await alone.ask("POST", f"/api/v1/approvals/{hidden}", {"decision": "grant"}, token=token)
            assert (status, problem["code"]) == (404, "approval-unknown")
        status, granted = await alone.ask("POST", f"/api/v1/approvals/{theirs}", {"decision": "grant"}, token=token)
        assert (status, granted["state"]) == (200, "granted")


async def test_a_requester_within_the_named_group_decides_nothing(alone: Running) -> None:
    nested = await with_groups(alone, "nested", put_in("Group", "emea-leads", "finance-leads"))
    approval_id = await asked(alone, "finance-leads", bundle=nested)
    mine = alone.token("emea-leads", user=ALICE)
    for decision in ("grant", "deny"):
        status, problem = await alone.ask(
            "POST", f"/api/v1/approvals/{approval_id}", {"decision": decision}, token=mine
        )
        assert (status, problem["code"]) == (403, "requester-may-not-approve")
    above = alone.token("finance", user="eve@example.com")
    assert (await alone.ask("GET", f"/api/v1/approvals/{approval_id}", token=above))[0] == 404


async def test_a_group_called_other_is_not_what_other_means(service: Running) -> None:
    approval_id = await asked(service, "other")
    status, _ = await service.ask(
        "POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant"}, token=service.token("other", user="eve")
    )
    assert status == 404


async def test_strangers_and_tokens_for_mcp_are_let_in_nowhere(service: Running) -> None:
    approval_id = await asked(service, "eng")
    for token, status in (
        ("", 401),
        ("nonsense", 401),
        (service.token("eng", audience=f"{service.settings.url}/mcp"), 401),
    ):
        for method, path in (
            ("GET", "/api/v1/approvals"),
            ("GET", f"/api/v1/approvals/{approval_id}"),
            ("POST", f"/api/v1/approvals/{approval_id}"),
        ):
            found, _ = await service.ask(method, path, {"decision": "grant"} if method == "POST" else None, token=token)
            assert found == status


async def test_somebody_who_is_quarantined_decides_nothing(service: Running) -> None:
    approval_id = await asked(service)
    value, taken = someone(service, "taken@example.com"), service.token(user="taken@example.com")
    await service.ask("POST", "/api/v1/quarantines", {"scope": "subject", "value": value, "reason": "account taken"})
    status, problem = await service.ask("POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant"}, token=taken)
    assert (status, problem["code"]) == (403, "approver-quarantined")
    assert service.opened.service.approver.approvals.get(approval_id).state == "pending"  # type: ignore[union-attr]


async def test_of_many_decisions_at_once_one_counts_and_the_others_are_told_which(service: Running) -> None:
    approval_id = await asked(service)
    answers = await asyncio.gather(
        *[
            service.ask(
                "POST",
                f"/api/v1/approvals/{approval_id}",
                {"decision": ("grant", "deny")[number % 2], "reason": f"r{number}"},
                token=service.token(user=f"admin{number}@example.com"),
            )
            for number in range(8)
        ]
    )
    (won,) = [body for status, body in answers if status == 200]
    lost = [body for status, body in answers if status == 409]
    assert len(lost) == 7
    assert {body["code"] for body in lost} == {f"approval-{won['state']}"}
    assert all(won["decision"]["actor"] in body["detail"] for body in lost)
    assert all(won["decision"]["reason"] in body["detail"] for body in lost)
    assert len(await history(service.log, approval_id)) == 2
    assert (await states(service.log))[approval_id].state == won["state"]


async def test_what_is_used_or_over_can_be_decided_no_more(service: Running) -> None:
    used, over = await asked(service), await asked(service, expires_us=now_us() + 300_000)
    await service.ask("POST", f"/api/v1/approvals/{used}", {"decision": "grant"})
    await record(service.log, ApprovalConsumed(**common(), approval_id=used, call_id="call-9", edge="e1"))
    await stands(service.log, used, "consumed")
    status, problem = await service.ask("POST", f"/api/v1/approvals/{used}", {"decision": "deny"})
    assert (status, problem["code"]) == (409, "approval-consumed")
    assert "call-9" in problem["detail"]
    await stands(service.log, over, "")
    assert [type(event) for event in await history(service.log, over)] == [ApprovalRequested, ApprovalExpired]
    status, problem = await service.ask("POST", f"/api/v1/approvals/{over}", {"decision": "grant"})
    assert (status, problem["code"]) == (404, "approval-unknown")


async def test_a_question_that_is_over_is_refused_before_anybody_has_said_so(alone: Running) -> None:
    """The service is asked between the end of the question's time and its own next look."""
    approval_id = await asked(alone, expires_us=now_us() + 10 * MINUTE_US)
    approver = alone.opened.service.approver
    late = now_us() + 11 * MINUTE_US
    approver._clock = lambda: late
    approver._look_us = late + MINUTE_US
    status, problem = await alone.ask("POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant"})
    assert (status, problem["code"]) == (409, "approval-expired")


async def test_answers_given_in_the_client_reach_the_state_and_what_came_first_from_edges_stands(
    service: Running,
) -> None:
    approval_id = await asked(service, "")
    alice = someone(service, ALICE)
    denied = ApprovalDenied(**common(), approval_id=approval_id, actor=alice, channel="form", reason="a slip")
    await record(service.log, denied)
    await stands(service.log, approval_id, "denied")
    status, problem = await service.ask("POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant"})
    assert (status, problem["code"]) == (409, "approval-denied")
    assert "a slip" in problem["detail"]


async def test_a_restarted_service_knows_what_waits_and_finishes_what_a_crash_left(tmp_path: Path) -> None:
    """Events that only the history holds are what a service leaves that is killed between an edge's word and its own;
    a state record of which the history knows nothing is what a log leaves that lost its end.
    """
    async with running(settings_for(tmp_path)) as first:
        alice = someone(first, ALICE)
        waiting, granted = await asked(first), await asked(first)
        await first.ask("POST", f"/api/v1/approvals/{granted}", {"decision": "grant"})
    settings = settings_for(tmp_path)
    async with appending(settings) as log:
        over = question(alice, asked_us=now_us() - 20 * MINUTE_US)
        fresh = question(alice)
        yes = ApprovalGranted(
            **common(), approval_id=fresh.approval_id, actor="x", channel="api", expires_us=fresh.expires_us
        )
        await record(log, yes, over, fresh)
        assert fresh.approval_id not in await states(log)
    async with running(settings) as second:
        await stands(second.log, fresh.approval_id, "granted")
        await stands(second.log, over.approval_id, "")
        assert [type(event) for event in await history(second.log, over.approval_id)] == [
            ApprovalRequested,
            ApprovalExpired,
        ]
        found = {name: one.state for name, one in (await states(second.log)).items()}
        assert found == {waiting: "pending", granted: "granted", fresh.approval_id: "granted"}
        _, listed = await second.ask("GET", "/api/v1/approvals")
        assert [(one["approval_id"], one["login"]) for one in listed] == [(waiting, ALICE)]
        status, problem = await second.ask("POST", f"/api/v1/approvals/{granted}", {"decision": "deny"})
        assert (status, problem["code"]) == (409, "approval-granted")


@contextlib.asynccontextmanager
async def appending(settings: Settings) -> AsyncIterator[EventLog]:
    log = open_log(settings)
    await log.prepare()
    try:
        yield log
    finally:
        await log.close()


async def test_approvals_are_no_quarantines_and_erasures_no_approvals(alone: Running) -> None:
    approval_id = await asked(alone)
    await stands(alone.log, approval_id, "pending")
    await alone.ask("POST", "/api/v1/quarantines", {"scope": "agent", "value": "rogue", "reason": "r"})
    await alone.ask("POST", "/api/v1/erasures", {"subject": "e" * 32, "reason": "asked to"})
    later = await asked(alone)
    await stands(alone.log, later, "pending")
    assert set(await states(alone.log)) == {approval_id, later}
    assert [one["value"] for one in (await alone.ask("GET", "/api/v1/quarantines"))[1]] == ["rogue"]


async def test_events_of_another_tenant_or_that_make_no_sense_change_nothing(alone: Running) -> None:
    foreign = msgspec.structs.replace(question("x"), tenant="evil")
    orphan = ApprovalGranted(**common(), approval_id="a|b|c", actor="x", channel="api", expires_us=2**62)
    after = question(someone(alone, ALICE))
    await record(alone.log, foreign, orphan, after)
    await stands(alone.log, after.approval_id, "pending")
    assert set(await states(alone.log)) == {after.approval_id}
    assert [one["approval_id"] for one in (await alone.ask("GET", "/api/v1/approvals?state=all"))[1]] == [
        after.approval_id
    ]


async def test_a_list_looks_at_the_newest_alone_and_still_has_the_caller_s_own(
    alone: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals_api, "LOOKED_AT_MAX", 3)
    own = await asked(alone)
    others = [await asked(alone, requester="bob") for _ in range(4)]
    for token, wanted in ((alone.token(), others[:0:-1]), (alone.token("eng", user=ALICE), [own])):
        _, listed = await alone.ask("GET", "/api/v1/approvals", token=token)
        assert [one["approval_id"] for one in listed] == wanted


HOSTILE_IDS = ("%00", "..%2f..", "a" * 129, "%F0%9F%92%A5", "acme|approval|x", "'; DROP TABLE", "%25%7c", "a/b", "%ff")
HOSTILE_BODIES = (
    b"",
    b"\xff",
    b"null",
    b"[]",
    b"{}",
    b'{"decision":"maybe"}',
    b'{"decision":"grant","reason":7}',
    b'{"decision":"grant","reason":null}',
    b'{"decision":"grant","approver":"me"}',
    b'{"decision":"grant","reason":"' + b"x" * 501 + b'"}',
    b'{"decision":' + b"[" * 5_000,
)


async def test_hostile_ids_are_unknown_or_malformed_and_never_an_error_of_ours(service: Running) -> None:
    headers = {"Authorization": f"Bearer {service.token()}"}
    for path in HOSTILE_IDS:
        for method, body in (("GET", None), ("POST", {"decision": "grant"})):
            url = f"{service.base}/api/v1/approvals/{path}"
            async with service.client.request(method, url, json=body, headers=headers) as response:
                assert response.status in (404, 422), (path, await response.text())


async def test_hostile_bodies_and_queries_decide_nothing_and_are_told_why(service: Running) -> None:
    approval_id = await asked(service)
    for body in HOSTILE_BODIES:
        status, problem = await service.ask(
            "POST", f"/api/v1/approvals/{approval_id}", body, headers={"Content-Type": "application/json"}
        )
        assert (status, problem["code"]) in ((422, "request-malformed"), (400, "request-refused")), body[:80]
        assert problem["detail"]
    for query in ("state=granted", "limit=0", "limit=1001", "limit=x"):
        status, problem = await service.ask("GET", f"/api/v1/approvals?{query}")
        assert (status, problem["code"]) == (422, "request-malformed")
    assert service.opened.service.approver.approvals.get(approval_id).state == "pending"  # type: ignore[union-attr]


async def test_a_decision_whose_record_failed_counts_only_once_it_is_in_the_log(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval_id = await asked(service)

    async def refused(records: Any) -> None:
        raise LogUnavailable("the log is away")

    monkeypatch.setattr(service.log, "append", refused)
    status, problem = await service.ask("POST", f"/api/v1/approvals/{approval_id}", {"decision": "grant"})
    assert (status, problem["code"]) == (503, "log-unavailable")
    monkeypatch.undo()
    _, shown = await service.ask("GET", f"/api/v1/approvals/{approval_id}")
    assert shown["state"] == "pending"
    status, denied = await service.ask("POST", f"/api/v1/approvals/{approval_id}", {"decision": "deny"})
    assert (status, denied["state"]) == (200, "denied")


async def test_the_sealed_part_opens_while_its_key_is_there_and_says_why_when_it_does_not(alone: Running) -> None:
    alice = someone(alone, ALICE)
    masters = open_wrapping(alone.settings, create=True)
    assert masters is not None
    mine, foreign = SubjectKey.generate("acme", alice, now_us()), SubjectKey.generate("acme", alice, now_us())
    part = Sealed(login=ALICE, arguments=msgspec.Raw(b'{"amount":900.10000000000000000001}'))
    opens = await asked(alone, sealed=seal(part, mine))
    shut = await asked(alone, sealed=seal(part, foreign))
    other_master = Wrapping([b"m" * 32])
    await alone.log.append(
        [
            Record("subject-keys", topic_key("acme", alice, mine.kid), masters.wrap(mine)),
            Record("subject-keys", topic_key("acme", alice, foreign.kid), other_master.wrap(foreign)),
        ]
    )

    async def is_open() -> bool:
        return bool((await alone.ask("GET", f"/api/v1/approvals/{opens}"))[1]["login"] == ALICE)

    await until(is_open)
    headers = {"Authorization": f"Bearer {alone.token()}"}
    async with alone.client.get(f"{alone.base}/api/v1/approvals/{opens}", headers=headers) as response:
        assert b'"arguments":{"amount":900.10000000000000000001}' in await response.read(), "digit by digit"
    _, told = await alone.ask("GET", f"/api/v1/approvals/{shut}")
    assert (told["shut"], told["login"], told["arguments"]) == ("key-not-here", "", None)
    assert told["shut_message"]
    await alone.ask("POST", "/api/v1/erasures", {"subject": alice, "reason": "asked to"})

    async def is_shut() -> bool:
        return bool((await alone.ask("GET", f"/api/v1/approvals/{opens}"))[1]["shut"] == "erased")

    await until(is_shut)
    _, listed = await alone.ask("GET", "/api/v1/approvals")
    assert ALICE not in str(listed)


async def test_metrics_count_what_waits_and_the_openapi_document_says_how_to_decide(alone: Running) -> None:
    await asked(alone)
    async with alone.client.get(f"{alone.base}/metrics") as response:
        assert 'tidegate_policy_approvals{state="pending"} 1.0' in await response.text()
    async with alone.client.get(f"{alone.base}/openapi.json") as response:
        document = await response.json()
    one = document["paths"]["/api/v1/approvals/{approval_id}"]
    assert {"200", "401", "403", "404", "409", "422", "503"} <= set(one["post"]["responses"])
    for operation in (one["get"], one["post"], document["paths"]["/api/v1/approvals"]["get"]):
        assert operation["summary"]
        assert operation["description"]
        assert operation["security"]
        assert operation["tags"] == ["approvals"]
    fields = document["components"]["schemas"]["ApprovalDetail"]["properties"]
    assert {"arguments", "shut", "may_decide", "who_decides"} <= set(fields)


ASK_FOR_EVER = """
import asyncio, sys
import msgspec
from tidegate.chain import Chain
from tidegate.events import ApprovalRequested
from tidegate.ids import now_us, uuid7
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_policy.service import create_policy

async def main(root):
    settings = msgspec.convert({"root": root, "tenant": "acme"}, Settings)
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    chain = Chain(f"edge.{uuid7()}")
    async with create_policy(settings, log, None) as service:
        while service.awaiting():
            await asyncio.sleep(0.001)
        while True:
            name = uuid7()
            event = ApprovalRequested(
                id=uuid7(), time_us=now_us(), tenant="acme", region="local", approval_id=name, binding="b",
                subject_id="u", agent="a", session_id="s", method="tools/call", server="s", target="t", call_id="c",
                root_call_id="c", approver="other", expires_us=now_us() + 600_000_000, edge="e",
            )
            await log.append([chain.seal(event)])
            print(name, flush=True)
            await asyncio.sleep(0)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_service_killed_between_history_and_state_leaves_nothing_that_the_next_does_not_finish(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path)
    settings.data_dir.mkdir()
    told: list[str] = []
    for lines in (3, 20):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK_FOR_EVER, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(lines):
            async with asyncio.timeout(30):
                told.append((await child.stdout.readline()).decode().strip())
        child.kill()
        told += (await child.stdout.read()).decode().split()
        await child.wait()
    async with running(settings) as served:

        async def all_stand() -> bool:
            return set(told) <= set(await states(served.log))

        await until(all_stand, 30)
        status, granted = await served.ask("POST", f"/api/v1/approvals/{told[-1]}", {"decision": "grant"})
        assert (status, granted["state"]) == (200, "granted")


async def test_a_long_history_is_read_without_keeping_what_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate_policy.approvals.PRUNE_FROM", 50)
    settings = settings_for(tmp_path)
    settings.data_dir.mkdir()
    async with appending(settings) as log:
        chain, old_us = Chain("edge-old.1"), now_us() - 60 * MINUTE_US
        old = [question("u", asked_us=old_us + number) for number in range(3_000)]
        current = question("u")
        await log.append([chain.seal(event) for event in (*old, current)])
        said = [ApprovalExpired(**common(), approval_id=one.approval_id) for one in old[:-5]]
        left = [Record("control-state", state_key("acme", one.approval_id), stale_state(one)) for one in old[:100]]
        await log.append([*left, *(chain.seal(event) for event in said)])
    async with running(settings) as served:
        approver = served.opened.service.approver
        await stands(served.log, current.approval_id, "pending")
        assert [one.approval_id for one in approver.approvals.current(now_us())] == [current.approval_id]
        await until(lambda: len(approver.approvals) == 1)
        for forgotten in old[-5:]:
            events = [type(event) for event in await history(served.log, forgotten.approval_id)]
            assert events == [ApprovalRequested, ApprovalExpired], "said once, though it was past its time at the start"
        assert len(await history(served.log, old[0].approval_id)) == 2

        async def only_the_current_one_stands() -> bool:
            return set(await states(served.log)) == {current.approval_id}

        await until(only_the_current_one_stands)


def stale_state(event: ApprovalRequested) -> bytes:
    """As it was written while it waited."""
    fold = Approvals()
    approval = fold.apply(event)
    assert approval is not None
    return state_value(approval)


@pytest.mark.kafka
async def test_over_kafka_one_service_decides_and_a_fenced_one_neither_decides_nor_writes_the_state(
    kafka: Kafka, tmp_path: Path
) -> None:
    ensure_signing_key(tmp_path / "bundle.pem")
    raw = {
        "root": str(tmp_path),
        "tenant": "acme",
        "log": f"kafka://{kafka.bootstrap}",
        "kafka": {"prefix": f"{uuid7()}.", "partitions": 2, "replication": 1, "min_insync": 1},
        "signing": {"key_file": "bundle.pem"},
    }
    settings = msgspec.convert(raw, Settings)
    edge = open_log(settings)
    logs = [open_log(settings, writer_id=writer_id(settings)) for _ in range(2)]
    await logs[0].prepare()
    await edge.prepare()
    one, two = question("u1"), question("u1")
    try:
        async with create_policy(settings, logs[0], Nobody()) as first:
            await until(lambda: not first.awaiting(), 60)
            await record(edge, one)
            await stands(edge, one.approval_id, "pending")
            await logs[1].prepare()
            async with create_policy(settings, logs[1], Nobody()) as second:
                await until(lambda: not second.awaiting(), 60)
                with pytest.raises(LogUnavailable) as fault:
                    await first.approver.decide(one.approval_id, "deny", "", admin())
                assert fault.value.code == "writer-fenced"
                await record(edge, two)
                await stands(edge, two.approval_id, "pending")
                done = await second.approver.decide(one.approval_id, "grant", "", admin())
                assert done.state == "granted"
                with pytest.raises(ApiFault) as late:
                    await second.approver.decide(one.approval_id, "deny", "", admin())
                assert (late.value.status, late.value.code) == (409, "approval-granted")
                assert (await states(edge))[one.approval_id].state == "granted"
                assert len(await history(edge, one.approval_id)) == 2
    finally:
        for log in (*logs, edge):
            await log.close()


class Nobody:
    """A verifier for services that are not asked over HTTP."""

    async def verify(self, token: str) -> Refused:
        return Refused("token-unknown", "nobody may ask here")


def admin() -> Person:
    principal = Principal(
        tenant="acme",
        issuer="i",
        subject="root",
        subject_id="f" * 32,  # type: ignore[arg-type]
        user="root",
        login="root",
        agent="cli",
        agent_source="client_id",
        actors=(),
        groups=("tidegate-admins",),
        scopes=(),
        token_id="t",
        sid="",
        issued_us=0,
        expires_us=0,
        key="k",
    )
    return Person(principal, is_admin=True)


async def test_a_quarantine_of_the_detector_still_becomes_state_beside_approvals(service: Running) -> None:
    imposed = QuarantineImposed(
        **common(), quarantine_id="q1", scope="agent", value="rogue", reason="r", actor="detector"
    )
    await record(service.log, question("u1"), imposed)
    await until(lambda: "q1" in service.onlooker.stored)
