"""The steps between accept and reply. Each takes the call, adds its facts to it, and says nothing to anybody."""

from typing import Any, Final

import msgspec
from mcp.shared.inbound import mcp_param_headers, validate_mcp_param_headers

from tidegate.errors import Fault, UpstreamFault
from tidegate.events import Outcome
from tidegate.identity import Principal
from tidegate.ids import now_us
from tidegate.inspection.fingerprints import fingerprints
from tidegate.inspection.scanner import EMPTY, Scan, Scanner
from tidegate.limits import FINDINGS_PER_CALL_MAX
from tidegate_edge import reply, strict_json, translate
from tidegate_edge.accept import PARAM_HEADER, Request
from tidegate_edge.calls import NULL, Ended, Ongoing
from tidegate_edge.catalog import Tool
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply, decode_error, decode_fields, decode_result_head, encode
from tidegate_edge.upstream.port import Answer, Caller, Routing

ERROR_CODE_MAX: Final = 2**31 - 1  # as an event keeps it: a column holds no number of any size


class Visit(msgspec.Struct, frozen=True):
    """Who came, through which door, in which session."""

    principal: Principal
    server: str  # of /mcp/{server}; "" at /mcp
    session_id: str  # the governance session
    protocol_session: str = ""


def begin(edge: Edge, visit: Visit, request: Request) -> Ongoing:
    """The call's target, as the client's name for it resolves at this door."""
    ruling = edge.rulings.get(visit.principal.tenant)
    name = str(request.params.get("name", ""))
    tool = ruling.catalog.find(visit.server, name) if ruling else None
    terms = edge.terms_of(tool.server if tool else visit.server, tool)
    call = Ongoing(request, visit.principal, tool, name, visit.server, terms, now_us())
    call.ruling = ruling
    call.session_id = visit.session_id
    call.protocol_session = visit.protocol_session
    call.members = decode_fields(request.raw_params)
    if "arguments" in call.members:
        call.arguments = call.arguments_captured = bytes(call.members["arguments"])
    if ruling is not None:
        call.bundle, call.release = ruling.digest, ruling.number
        call.catalog = ruling.catalog.shelves[tool.server].digest if tool else ""
    return call


def admit(edge: Edge, call: Ongoing) -> None:
    """Quarantines, limits, and whether there is anything to decide with. Sets decision `allow` where the call may go
    on.
    """
    quarantines = edge.quarantines_of(call.principal.tenant)
    call.control_epoch = quarantines.epoch
    standing = quarantines.match(
        session_id=call.session_id,
        subject_id=call.principal.subject_id,
        agent=call.principal.agent,
        server=call.tool_server,
        tool=call.target,
        now_us=call.requested_us,
    )
    if standing is not None:
        call.refuse("quarantine", "quarantined", f"This {standing.scope} is in quarantine: {standing.reason}")
        call.rules = (standing.quarantine_id,)
        call.hidden = standing.scope in ("server", "tool") and not _is_known_to(edge, call)
    elif call.ruling is None:
        call.refuse(
            "policy",
            "no-bundle",
            "No policy bundle is active yet, so nothing is permitted. Ask the operator to publish one.",
        )
    elif edge.calls_in_flight >= edge.limits.concurrent_calls_max:
        call.refuse("limit", "gateway-busy", "The gateway has too many calls in flight. Try again shortly.", "limited")
    else:
        call.decision, call.stage = "allow", "policy"


def _is_known_to(edge: Edge, call: Ongoing) -> bool:
    """Whether the principal may know that the tool exists."""
    ruling = call.ruling
    return ruling is not None and call.tool is not None and ruling.is_visible(call.principal, call.tool)


def decide(edge: Edge, call: Ongoing) -> None:
    """The bundle's verdict. A tool that the principal may not see is refused in the words used for one that does not
    exist.
    """
    ruling = call.ruling
    assert ruling is not None
    arguments = call.request.params.get("arguments", {})
    if call.tool is None:
        call.refuse("policy", "unknown-tool", reply.unknown_tool(call))
        call.hidden = True
    elif not isinstance(arguments, dict):
        call.refuse("admission", "arguments-not-an-object", "arguments must be an object")
        call.hidden = not ruling.is_visible(call.principal, call.tool)
    else:
        verdict = ruling.decide(call.principal, call.tool, arguments)
        call.decision, call.rules = verdict.effect, verdict.rules
        call.reason, call.message = verdict.reason, verdict.told
        call.hidden = verdict.effect == "deny" and not ruling.is_visible(call.principal, call.tool)
        if call.tool.input_schema is not None and not call.hidden:
            _compare_param_headers(call, arguments)
    call.policy_us = now_us() - call.requested_us


def _compare_param_headers(call: Ongoing, arguments: dict[str, Any]) -> None:
    """Mcp-Param-* of a modern client must say what its arguments say (2026-07-28 transports)."""
    if not call.request.modern:
        return
    assert call.tool is not None
    given = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in call.request.headers.items()
        if name.startswith(PARAM_HEADER)
    }
    mismatch = validate_mcp_param_headers(call.tool.input_schema, arguments, given)
    if mismatch is not None:
        call.refuse("admission", reply.HEADER_MISMATCH_REASON, mismatch.message)


def inspect_arguments(edge: Edge, call: Ongoing) -> None:
    """Patterns over everything that goes on: what blocks refuses, what masks changes what is sent. Fingerprints for
    egress.
    """
    assert call.tool is not None
    assert call.ruling is not None
    scanner = call.ruling.scanner
    if scanner.scan(call.request.raw_params, "arguments") is not EMPTY:
        _settle_findings(scanner, call)
    if call.decision == "allow" and "egress" in call.tool.labels:
        call.fingerprints = fingerprints(call.arguments, edge.fingerprint_key(call.principal.tenant))


def _settle_findings(scanner: Scanner, call: Ongoing) -> None:
    """The arguments, and what goes on beside them, each for itself."""
    scan = _capture(scanner, call)
    beside = {key: call.members[key] for key in translate.BESIDE_ARGUMENTS if key in call.members}
    other = scanner.scan(encode(beside), "arguments") if beside else EMPTY
    call.findings = (scan.findings + other.findings)[:FINDINGS_PER_CALL_MAX]
    blocked = scan.blocked or other.blocked
    if blocked is not None:
        what = "arguments" if scan.blocked else "params"
        call.refuse(
            "inspection", "arguments-blocked", f"The {what} hold something that may not be sent: {blocked.rule}."
        )
        call.rules = (blocked.rule,)
        return
    if scan.masked is not None:
        call.arguments = scan.masked
    if other.masked is not None:
        call.members.update(decode_fields(other.masked))


def _capture(scanner: Scanner, call: Ongoing) -> Scan:
    scan = scanner.scan(call.arguments, "arguments")
    if scan.findings:
        call.arguments_captured = scan.recorded or call.arguments
    return scan


def inspect_refused(edge: Edge, call: Ongoing) -> None:
    """What was refused before its arguments were inspected is kept as carefully as what is sent."""
    ruling = call.ruling
    if ruling is None:
        call.arguments_captured = bytes(NULL)  # nobody knows yet what must be masked
        return
    call.findings = _capture(ruling.scanner, call).findings
    if call.tool is None:
        call.target = ruling.told(call.target, "arguments")
    if call.tool is None or call.reason == "argument-not-representable":  # the caller's words are in the sentence
        call.message = ruling.told(call.message, "arguments")


async def forward(edge: Edge, call: Ongoing) -> Answer:
    """Send to the upstream, in the upstream's era and under the upstream's name. Raises UpstreamFault."""
    assert call.tool is not None
    tool, principal = call.tool, call.principal
    upstream, timeout_s = edge.upstreams[tool.server], edge.timeout_of(tool.server)
    await upstream.ready(timeout_s)
    modern = upstream.modern
    params = translate.params_for_upstream(call.request, call.members, tool.raw_name, call.arguments, modern)
    headers = _param_headers(tool, call.arguments) if modern and tool.param_headers else b""
    caller = Caller(principal.tenant, principal.subject_id, principal.agent)
    routing = Routing(tool.routing_name, headers)
    return await upstream.request("tools/call", params, caller, routing=routing, timeout_s=timeout_s)


def _param_headers(tool: Tool, arguments: bytes) -> bytes:
    named = mcp_param_headers(tool.param_headers, msgspec.json.decode(arguments))
    return "".join(f"{name.lower()}: {value}\r\n" for name, value in named.items()).encode()


def inspect_result(edge: Edge, call: Ongoing, answer: Answer) -> tuple[Ended, Reply]:
    """Patterns over the answer, whatever it is; then the answer in the client's era."""
    assert call.tool is not None
    completed_us = now_us()
    raw = answer.result or answer.error
    try:
        strict_json.read(raw)
        facts = _facts(answer)
    except (strict_json.NotStrictJson, msgspec.DecodeError) as error:
        return failed(
            edge, call, UpstreamFault(f"{call.tool_server}: the answer is refused: {error}", code="upstream-malformed")
        )
    assert call.ruling is not None
    scan = call.ruling.scanner.scan(raw, "result")
    sensitive = "sensitive" in call.tool.labels and answer.result
    key = edge.fingerprint_key(call.principal.tenant) if sensitive else b""
    ended = Ended(
        outcome="blocked" if scan.blocked else facts[0],
        completed_us=completed_us,
        upstream_us=completed_us - call.forwarded_us,
        error_code=facts[1],
        reason="result-blocked" if scan.blocked else "",
        message=reply.BLOCKED_RESULT if scan.blocked else "",
        result=raw,
        result_captured=scan.recorded or raw,
        findings=scan.findings,
        masked=scan.masks,
        fingerprints=fingerprints(raw, key) if sensitive else (),
    )
    if scan.blocked is not None:
        return ended, reply.blocked_result(call, scan.blocked.rule)
    shown = raw if scan.masked is None else scan.masked
    return ended, reply.answer(call, shown, is_error=not answer.result)


def _facts(answer: Answer) -> tuple[Any, int]:
    """(outcome, JSON-RPC error code) of an answer."""
    if answer.error:
        return "rpc-error", max(-ERROR_CODE_MAX, min(ERROR_CODE_MAX, decode_error(answer.error).code))
    return ("tool-error" if decode_result_head(answer.result).isError else "ok"), 0


def failed(edge: Edge, call: Ongoing, fault: Fault) -> tuple[Ended, Reply]:
    """The upstream failed, or what is needed to reach it: what to record, and what to say. Its own words may be in
    the sentence, so that is inspected, too.
    """
    sent = fault.sent if isinstance(fault, UpstreamFault) else False
    assert call.ruling is not None
    sentence = call.ruling.told(fault.sentence, "result")
    fault = UpstreamFault(sentence, code=fault.code, sent=sent)
    at_us = now_us()
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
    at_us = now_us()
    return Ended(
        outcome="upstream-failed", completed_us=at_us, upstream_us=at_us - call.forwarded_us, reason="gateway-failed"
    )


def cancelled(call: Ongoing) -> Ended:
    """The caller went away (modern clients cancel by closing the stream); what the upstream did is not known."""
    at_us = now_us()
    upstream_us = at_us - call.forwarded_us if call.forwarded_us else 0
    return Ended(outcome="cancelled", completed_us=at_us, upstream_us=upstream_us, reason="caller-gone")
