"""The steps between accept and reply. Each takes the call, adds its facts to it, and says nothing to anybody."""

import time
from typing import Any, Final

import msgspec
from mcp.shared.inbound import encode_header_value, mcp_param_headers, validate_mcp_param_headers

from tidegate import json_values
from tidegate.errors import Fault, UpstreamFault
from tidegate.events import Finding, Outcome
from tidegate.ids import now_us
from tidegate.inspection.fingerprints import fingerprinting
from tidegate.inspection.scanner import EMPTY, Scan, Scanner
from tidegate.limits import FINDINGS_PER_CALL_MAX, LARGE_BYTES
from tidegate.turns import Turns, at_once
from tidegate_edge import bridge, reply, shadows, strict_json, targets, tasks, translate
from tidegate_edge.accept import PARAM_HEADER, Request
from tidegate_edge.calls import NULL, TARGET_CHARS_MAX, Ended, Inputs, Ongoing
from tidegate_edge.catalog import Item
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply, decode_error, decode_fields, decode_result_head, decode_text, encode
from tidegate_edge.talk import Conversation
from tidegate_edge.upstream.port import NO_ROUTING, SILENCE, Answer, Outgoing, Paused, Routing
from tidegate_edge.visit import Visit

ERROR_CODE_MAX: Final = 2**31 - 1  # as an event keeps it: a column holds no number of any size
_TELLING_ARGUMENTS: Final = frozenset({"argument-not-representable", "arguments-unlike-schema"})
_BESIDE_ARGUMENTS: Final = frozenset({"name", "arguments", "uri", "ref", "argument", "context"})


def begin(edge: Edge, visit: Visit, request: Request, inputs: Inputs | None = None) -> Ongoing:
    """The call's target, as the client's name for it resolves at this door. `inputs` of a further round, where the
    gateway itself asked the client. Raises bridge.StateRefused.
    """
    ruling = edge.ruling_of(visit.principal)
    handle = tasks.open_handle(edge, visit, request) if request.method in targets.TASKS else None
    found = targets.find(ruling.catalog, visit.door, request, handle) if ruling else None
    named = targets.named(request)
    item = found.item if found else None
    terms = edge.terms_of(visit.principal.tenant, item.server if item else visit.door, item)
    call = Ongoing(visit, request, item, found.target if found else named[:TARGET_CHARS_MAX], terms, now_us())
    call.ruling = ruling
    call.members = decode_fields(request.raw_params) if request.method != targets.CANCEL else {}
    call.arguments = targets.arguments(call.members, request, found) if handle is None else tasks.arguments(handle)
    call.arguments_captured = call.arguments
    call.abilities = visit.abilities(request)
    call.log_level = visit.log_level(request)
    if ruling is not None:
        call.bundle, call.release = ruling.digest, ruling.number
        call.catalog = ruling.catalog.shelves[item.server].digest if item else ""
    call.inputs = inputs or bridge.inputs_of(edge, visit, call)
    if call.inputs is not None:
        call.root = call.inputs.root
        if call.inputs.approval:
            call.members.pop("inputResponses", None)
    if handle is not None:
        call.task, call.root = handle, handle.root
    return call


def admit(edge: Edge, call: Ongoing) -> None:
    """Quarantines, limits, and whether there is anything to decide with. Sets decision `allow` where the call may go
    on.
    """
    if _is_in_quarantine(edge, call):
        return
    if call.ruling is None:
        call.refuse(
            "policy",
            "no-bundle",
            "No policy bundle is active yet, so nothing is permitted. Ask the operator to publish one "
            "(`tidegate bundle publish DIRECTORY`).",
        )
    elif edge.calls_in_flight >= edge.limits.concurrent_calls_max:
        call.refuse("limit", "gateway-busy", "The gateway has too many calls in flight. Try again shortly.", "limited")
    else:
        call.decision, call.stage = "allow", "policy"


def _is_in_quarantine(edge: Edge, call: Ongoing) -> bool:
    """Refuses the call where it is."""
    quarantines = edge.quarantines_of(call.principal.tenant)
    call.control_epoch = quarantines.epoch
    standing = quarantines.match(
        session_id=call.visit.session_id,
        subject_id=call.principal.subject_id,
        agent=call.principal.agent,
        server=call.server,
        tool=targets.stopped_as(call),
        now_us=call.requested_us,
    )
    if standing is None:
        return False
    call.refuse("quarantine", "quarantined", reply.in_quarantine(standing))
    call.rules = (standing.quarantine_id,)
    call.hidden = standing.scope in ("server", "tool") and not _is_known_to(edge, call)
    return True


def admit_still(edge: Edge, call: Ongoing) -> None:
    """Whatever was commanded while a large call was inspected."""
    if call.decision in ("allow", "ask") and edge.quarantines_of(call.principal.tenant).epoch != call.control_epoch:
        _is_in_quarantine(edge, call)


def _is_known_to(edge: Edge, call: Ongoing) -> bool:
    """Whether the principal may know that the target exists."""
    ruling = call.ruling
    return ruling is not None and call.item is not None and ruling.is_visible(call.principal, call.item)


def decide(edge: Edge, call: Ongoing) -> None:
    """The bundle's verdict. A target that the principal may not see is refused in the words used for one that does not
    exist.
    """
    ruling = call.ruling
    assert ruling is not None
    arguments = targets.decided_on(call)
    if call.item is None and (wrong := targets.malformed(call.request)):
        call.refuse("admission", reply.MALFORMED_URI_REASON, wrong)
    elif call.item is None:
        call.refuse("policy", f"unknown-{targets.kind(call.method)}", reply.unknown(call))
        call.hidden = True
    elif call.method == targets.CANCEL:  # to stop is safe: nothing goes along, and nothing comes back
        call.decision = "allow"
    elif ruling.held and (why := ruling.held.get((call.item.server, call.item.action))) is not None:
        call.refuse("policy", "definition-held", why)
        call.hidden = True
    elif call.task is not None:
        tasks.decide(call, ruling, call.item, call.task)
    elif arguments is None:
        call.refuse("admission", "arguments-not-an-object", "arguments must be an object")
        call.hidden = not ruling.is_visible(call.principal, call.item)
    else:
        began_ns = time.perf_counter_ns()
        verdict = ruling.decide(call.principal, call.item, arguments, call.facts)
        took_us = (time.perf_counter_ns() - began_ns) / 1_000
        call.hidden = verdict.effect == "deny" and not ruling.is_visible(call.principal, call.item)
        unknown = call.hidden and not ruling.takes_away(call.principal, call.item)
        if not ruling.says_nothing_of_it(call.principal, call.item, arguments, call.facts, verdict):
            ruling.tally.add_share(call.principal.subject_id, call.requested_us, verdict, took_us, hidden=unknown)
        if ruling.shadows:
            shadows.ask(edge, call, arguments, verdict)
        call.decision, call.rules = verdict.effect, verdict.rules
        call.reason, call.message = verdict.reason, verdict.told
        if verdict.effect == "ask":
            call.approver, call.asked_for_s, call.asked_about = verdict.approver, verdict.expires_s, call.arguments
        if call.item.input_schema is not None and not call.hidden:
            _compare_param_headers(call, arguments)
    call.policy_us = call.now_us() - call.requested_us


def _compare_param_headers(call: Ongoing, arguments: dict[str, Any]) -> None:
    """Mcp-Param-* of a modern client must say what its arguments say (2026-07-28 transports)."""
    if not call.request.modern:
        return
    assert call.item is not None
    given = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in call.request.headers.items()
        if name.startswith(PARAM_HEADER)
    }
    mismatch = validate_mcp_param_headers(call.item.input_schema, arguments, given)
    if mismatch is not None:
        call.refuse("admission", reply.HEADER_MISMATCH_REASON, mismatch.message)


def inspect(edge: Edge, call: Ongoing) -> None:
    """Patterns over everything that goes on: what blocks refuses, what masks changes what is sent. Fingerprints for
    egress. What was refused is inspected as well, for its record.
    """
    if not _is_plain(call):
        at_once(inspecting(edge, call))


def _is_plain(call: Ongoing) -> bool:
    """As most calls are: they may go on, nothing is found in them, and no fingerprints are taken."""
    if call.decision not in ("allow", "ask") or "egress" in call.labels:
        return False
    return call.ruling is not None and call.ruling.scanner.is_clean(call.request.raw_params, "arguments")


def inspecting(edge: Edge, call: Ongoing) -> Turns[None]:
    """As `inspect`, in turns."""
    if call.decision not in ("allow", "ask"):
        yield from _inspecting_refused(call)
        return
    assert call.item is not None
    assert call.ruling is not None
    scanner = call.ruling.scanner
    if (yield from scanner.suspecting(call.request.raw_params, "arguments")):
        yield from _settling_findings(scanner, call)
    if call.decision == "allow":
        yield from fingerprinting_arguments(edge, call)


def fingerprinting_arguments(edge: Edge, call: Ongoing) -> Turns[None]:
    """Of what leaves the house; for a call that is made."""
    if "egress" in call.labels:
        call.fingerprints = yield from fingerprinting(_leaving(call), edge.fingerprint_key(call.principal.tenant))


def _leaving(call: Ongoing) -> bytes:
    """The arguments, and what is answered to a server's questions."""
    given = call.members.get("inputResponses")
    return call.arguments if given is None else b"[%b,%b]" % (call.arguments, given)


def _settling_findings(scanner: Scanner, call: Ongoing) -> Turns[None]:
    """The arguments, and what goes on beside them, each for itself."""
    scan = yield from _capturing(scanner, call)
    beside = {key: value for key, value in call.members.items() if key not in _BESIDE_ARGUMENTS}
    other = (yield from scanner.scanning(encode(beside), "arguments")) if beside else EMPTY
    call.findings = (scan.findings + other.findings)[:FINDINGS_PER_CALL_MAX]
    if other.recorded is not None and "inputResponses" in beside:
        call.inputs_captured = bytes(decode_fields(other.recorded)["inputResponses"])
    hidden = _hidden_in_target(scanner, call)
    blocked = scan.blocked or other.blocked or hidden
    if blocked is not None:
        what = "arguments" if blocked is not other.blocked else "params"
        call.refuse(
            "inspection", "arguments-blocked", f"The {what} hold something that may not be sent: {blocked.rule}."
        )
        call.rules = (blocked.rule,)
        return
    if scan.masked is not None:
        call.arguments, call.arguments_masked = scan.masked, True
    if other.masked is not None:
        call.members.update(decode_fields(other.masked))
        _mask_inputs(call)


def _hidden_in_target(scanner: Scanner, call: Ongoing) -> Finding | None:
    """What stands in a URI that may not be sent: a URI with a part masked would be another resource's."""
    if not targets.is_by_uri(call):
        return None
    scan = scanner.scan(encode(call.target), "arguments")
    if scan.recorded is not None:
        call.target_captured = decode_text(scan.recorded)
    return next((one for one in scan.findings if one.action in ("mask", "block")), None)


def _mask_inputs(call: Ongoing) -> None:
    """Answers that a client brings along go on as they were inspected."""
    if call.inputs is not None and "inputResponses" in call.members:
        responses = decode_fields(call.members["inputResponses"])
        call.inputs = msgspec.structs.replace(call.inputs, responses=responses)


def _capturing(scanner: Scanner, call: Ongoing) -> Turns[Scan]:
    scan = yield from scanner.scanning(call.arguments, "arguments")
    if scan.findings:
        call.arguments_captured = scan.recorded or call.arguments
    return scan


def inspect_refused(call: Ongoing) -> None:
    """Of a call that goes no further."""
    at_once(_inspecting_refused(call))


def _inspecting_refused(call: Ongoing) -> Turns[None]:
    """What was refused before its arguments were inspected is kept as carefully as what is sent."""
    ruling = call.ruling
    if ruling is None:
        call.arguments_captured = bytes(NULL)  # nobody knows yet what must be masked
        return
    call.findings = (yield from _capturing(ruling.scanner, call)).findings
    if call.item is None:
        call.target = ruling.told(call.target, "arguments")
    elif targets.is_by_uri(call):
        call.target_captured = ruling.told(call.target, "arguments")
    if call.item is None or call.reason in _TELLING_ARGUMENTS:  # the caller's words are in the sentence
        call.message = ruling.told(call.message, "arguments")


async def forward(edge: Edge, call: Ongoing) -> Answer | Paused:
    """Send to the upstream, in the upstream's era and under the upstream's name. Raises UpstreamFault."""
    item, request = call.item, call.request
    assert item is not None
    upstream, timeout_s = edge.upstreams[item.server], edge.timeout_of(item.server)
    modern = upstream.known_era(request.modern)
    if modern is None:
        modern = await upstream.era(request.modern, timeout_s)
    call.upstream_modern = modern
    if call.method == targets.CANCEL:
        return await upstream.request(tasks.cancelling(call, _routing(call, item), modern, timeout_s), SILENCE)
    talk = Conversation(edge, call)
    if call.inputs is not None and call.inputs.ticket:
        return await _go_on(edge, call, talk, timeout_s)
    if modern and call.method in targets.SUBSCRIBING:
        return Answer(result=b"{}")  # kept in the session; what is listened to upstream follows it
    outgoing = Outgoing(
        method=call.method,
        params=translate.params_for_upstream(call, modern),
        caller=call.visit.caller(call.abilities.declared),
        modern=modern,
        timeout_s=timeout_s,
        routing=_routing(call, item) if modern else NO_ROUTING,
        progress_token=translate.progress_token(call),
        log_level=call.log_level,
    )
    return await upstream.request(outgoing, talk)


async def _go_on(edge: Edge, call: Ongoing, talk: Conversation, timeout_s: float) -> Answer | Paused:
    """A paused upstream gets its answers, from this edge or from the one that holds its stream."""
    inputs = call.inputs
    assert inputs is not None
    assert call.item is not None
    if bridge.unanswered(inputs):
        return Paused(inputs.asked, inputs.ticket, inputs.held_by)
    answers = {key: Answer(result=bytes(inputs.responses[key])) for key in inputs.asked}
    caller, server = call.visit.caller(call.abilities.declared), call.item.server
    if inputs.held_by and inputs.held_by != edge.sessions.address:
        return await edge.peers.resume(inputs.held_by, server, inputs.ticket, answers, caller, talk, timeout_s)
    return await edge.upstreams[server].resume(inputs.ticket, answers, caller, talk, timeout_s)


def _routing(call: Ongoing, item: Item) -> Routing:
    if call.method == "tools/call":
        return Routing(item.routing_name, _param_headers(item, call.arguments) if item.param_headers else b"")
    if call.method == "prompts/get":
        return Routing(item.routing_name)
    if call.method in targets.TASKS:
        return Routing(encode_header_value(tasks.own_id(call.arguments)))
    return Routing(encode_header_value(call.target)) if call.method == "resources/read" else NO_ROUTING


def _param_headers(tool: Item, arguments: bytes) -> bytes:
    named = mcp_param_headers(tool.param_headers, json_values.decode(arguments))
    return "".join(f"{name.lower()}: {value}\r\n" for name, value in named.items()).encode()


def size(answer: Answer | Paused) -> int:
    """Bytes that are to be inspected, as far as they are bytes already: a pause has a few questions."""
    return len(answer.result or answer.error) if isinstance(answer, Answer) else 0


def inspect_result(edge: Edge, call: Ongoing, answer: Answer | Paused) -> tuple[Ended, Answer | Paused | Reply]:
    """Patterns over the answer, whatever it is. What may be passed on, or the reply that says why it may not."""
    return at_once(inspecting_result(edge, call, answer))


def inspecting_result(
    edge: Edge, call: Ongoing, answer: Answer | Paused
) -> Turns[tuple[Ended, Answer | Paused | Reply]]:
    """As `inspect_result`, in turns."""
    assert call.item is not None
    assert call.ruling is not None
    completed_us = call.now_us()
    raw = bridge.questions(answer) if isinstance(answer, Paused) else answer.result or answer.error
    try:
        if is_large := len(raw) > LARGE_BYTES:
            yield from strict_json.reading(raw, keep=False)
        else:
            strict_json.read(raw)
        outcome, error_code = _facts(call, answer)
    except (strict_json.NotStrictJson, msgspec.DecodeError) as error:
        return failed(
            edge, call, UpstreamFault(f"{call.server}: the answer is refused: {error}", code="upstream-malformed")
        )
    scanner = call.ruling.scanner
    scan = (yield from scanner.scanning(raw, "result")) if is_large else scanner.scan(raw, "result")
    sensitive = "sensitive" in call.item.labels and outcome != "rpc-error"
    key = edge.fingerprint_key(call.principal.tenant) if sensitive else b""
    ended = Ended(
        outcome="blocked" if scan.blocked else outcome,
        completed_us=completed_us,
        upstream_us=completed_us - call.forwarded_us,
        error_code=error_code,
        reason="result-blocked" if scan.blocked else "",
        message=reply.BLOCKED_RESULT if scan.blocked else "",
        result=raw,
        result_captured=scan.recorded or raw,
        findings=scan.findings,
        masked=scan.masks,
        fingerprints=(yield from fingerprinting(raw, key)) if sensitive else (),
    )
    if scan.blocked is not None:
        return ended, reply.blocked_result(call, scan.blocked.rule)
    return ended, answer if scan.masked is None else _masked(answer, scan.masked)


def _masked(answer: Answer | Paused, masked: bytes) -> Answer | Paused:
    if isinstance(answer, Paused):
        return bridge.with_questions(answer, masked)
    return Answer(result=masked) if answer.result else Answer(error=masked)


def _facts(call: Ongoing, answer: Answer | Paused) -> tuple[Outcome, int]:
    """(outcome, JSON-RPC error code) of an answer."""
    if isinstance(answer, Paused):
        return "input-required", 0
    if answer.error:
        return "rpc-error", max(-ERROR_CODE_MAX, min(ERROR_CODE_MAX, decode_error(answer.error).code))
    head = decode_result_head(answer.result)
    call.result_type = head.resultType or "complete"
    if head.resultType == "input_required":
        return "input-required", 0
    return ("tool-error" if head.isError else "ok"), 0


def failed(edge: Edge, call: Ongoing, fault: Fault) -> tuple[Ended, Reply]:
    """The upstream failed, or what is needed to reach it: what to record, and what to say. Its own words may be in
    the sentence, so that is inspected, too.
    """
    sent = fault.sent if isinstance(fault, UpstreamFault) else False
    assert call.ruling is not None
    sentence = call.ruling.told(fault.sentence, "result")
    fault = UpstreamFault(sentence, code=fault.code, sent=sent)
    at_us = call.now_us()
    outcome: Outcome = "timeout" if fault.code == "upstream-timeout" else "upstream-failed"
    ended = Ended(
        outcome=outcome,
        completed_us=at_us,
        upstream_us=at_us - call.forwarded_us,
        reason=fault.code,
        message=fault.sentence,
    )
    return ended, reply.upstream_failed(call, fault)


def broken(call: Ongoing) -> Ended:
    """The gateway failed between the permit and the answer; what the upstream did is not known."""
    at_us = call.now_us()
    return Ended(
        outcome="upstream-failed", completed_us=at_us, upstream_us=at_us - call.forwarded_us, reason="gateway-failed"
    )


def cancelled(call: Ongoing) -> Ended:
    """The caller went away (modern clients cancel by closing the stream); what the upstream did is not known."""
    at_us = call.now_us()
    upstream_us = at_us - call.forwarded_us if call.forwarded_us else 0
    return Ended(outcome="cancelled", completed_us=at_us, upstream_us=upstream_us, reason="caller-gone")
