"""reply: what the client is told. A denied tool call is a tool result with a sentence for the model and details in
`_meta`; any other denied request is an error with both.
"""

from typing import Any, Final

import msgspec
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS

from tidegate.errors import Fault, UpstreamFault
from tidegate.events import QuarantineImposed
from tidegate.policy.control import scope_word
from tidegate_edge import bridge, rewrite, shortage, targets, tasks, translate
from tidegate_edge.accept import Request, refuse
from tidegate_edge.calls import Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.messages import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MISSING_CAPABILITY,
    NOT_PERMITTED,
    RESOURCE_NOT_FOUND,
    URL_ELICITATION_REQUIRED,
    Reply,
    RpcError,
    decode_error,
    decode_fields,
    encode,
    error_body,
    result_body,
)
from tidegate_edge.upstream.port import Answer, Paused

HEADER_MISMATCH_REASON: Final = "header-mismatch"
MALFORMED_URI_REASON: Final = "uri-malformed"
DECISION_META: Final = "tidegate/decision"
_DECISION_MARK: Final = DECISION_META.encode()
BLOCKED_RESULT: Final = "The server answered, but its answer holds something that may not be passed on."


def refusal(call: Ongoing) -> Reply:
    """Not forwarded. What is unknown and what is hidden are told in the same words."""
    if call.hidden:
        return _unknown(call)
    if call.reason == MALFORMED_URI_REASON:
        return _malformed(call, call.message)
    if call.reason == HEADER_MISMATCH_REASON:
        return error(call, RpcError(HEADER_MISMATCH, call.message))
    if call.short is not None:
        told = refused(call, call.message, decision=call.decision, **shortage.details(call))
        return msgspec.structs.replace(told, headers=shortage.headers(call))
    return refused(call, call.message or "This request is not permitted.", decision=call.decision)


def unknown(call: Ongoing) -> str:
    """The sentence for a target that is not there, or not for this principal."""
    params = call.request.params
    if call.is_tool_call:
        return f"Unknown tool: {params.get('name', '')!s:.128}"
    if call.request.method == "prompts/get":
        return f"Unknown prompt: {params.get('name', '')!s:.128}"
    if call.request.method in targets.TASKS:
        return "Unknown task"
    if call.request.method == "completion/complete":
        return "Unknown reference: there is no such prompt or resource"
    return f"Resource not found: {params.get('uri', '')!s:.256}"


def _unknown(call: Ongoing) -> Reply:
    """2026-07-28 server/resources: -32602 with the URI; -32002 in the revisions before."""
    if wrong := targets.malformed(call.request):  # in the words for one that nobody has
        return _malformed(call, wrong)
    sentence = unknown(call)
    if not call.request.method.startswith("resources/"):
        return error(call, RpcError(INVALID_PARAMS, sentence))
    code = INVALID_PARAMS if call.request.modern else RESOURCE_NOT_FOUND
    return error(call, RpcError(code, sentence, {"uri": call.request.params.get("uri")}))


def _malformed(call: Ongoing, sentence: str) -> Reply:
    return error(call, RpcError(INVALID_PARAMS, sentence, {"uri": targets.named(call.request)}))


def quarantined(request: Request, standing: QuarantineImposed) -> Reply:
    """To whom nothing is listed while they may call nothing."""
    about = {"decision": "deny", "stage": "quarantine", "reason": "quarantined", "rules": [standing.quarantine_id]}
    told = in_quarantine(standing)
    status = ERROR_CODE_HTTP_STATUS.get(NOT_PERMITTED, 200) if request.modern else 200
    return refuse(status, NOT_PERMITTED, told, request.id, {DECISION_META: about})


def in_quarantine(standing: QuarantineImposed) -> str:
    return f"This {scope_word(standing.scope)} is in quarantine: {standing.reason}"


def unavailable(call: Ongoing, fault: Fault) -> Reply:
    """The log cannot take the record, so nothing was done (or, after the call, nothing is said)."""
    sentence = (
        f"The call could not be recorded, so it was not {'answered' if call.forwarded_us else 'made'}: {fault.sentence}"
    )
    return error(call, RpcError(INTERNAL_ERROR, sentence, {"reason": fault.code}), status=503)


def upstream_failed(call: Ongoing, fault: UpstreamFault) -> Reply:
    executed = "It may have been carried out." if fault.sent else "It was not carried out."
    sentence = f"The server {call.server} failed: {fault.sentence}. {executed}"
    if not call.is_tool_call:
        return error(call, RpcError(INTERNAL_ERROR, sentence, {"reason": fault.code}))
    return refused(call, sentence, reason=fault.code)


def blocked_result(call: Ongoing, rule: str) -> Reply:
    return refused(call, f"{BLOCKED_RESULT} (rule {rule})", decision="deny", reason="result-blocked", rules=[rule])


def answer(edge: Edge, call: Ongoing, given: Answer | Paused) -> Reply:
    """The upstream's own answer, inspected, in the client's era and under the names of its door."""
    try:
        return _answer(edge, call, given)
    except ValueError as fault:  # of sealing: what it would carry is too large
        return refused(call, f"{call.server} asks for input with a state that is too large to carry: {fault}")


def _answer(edge: Edge, call: Ongoing, given: Answer | Paused) -> Reply:
    request = call.request
    assert request.id is not None
    assert call.ruling is not None
    if isinstance(given, Paused):
        return Reply(200, result_body(request.id, bridge.pause_result(edge, call, given)))
    if call.method == targets.CANCEL:
        return _cancelled(call, given)
    if given.error:
        return _upstream_error(edge, call, given.error)
    raw = given.result
    asks = call.result_type == "input_required"
    if request.modern and (asks or call.method in targets.TASKS):
        unfit = bridge.unfit_questions(call, raw)
        if unfit:
            return _not_asked(call, unfit)
    if request.modern and asks:
        return Reply(200, result_body(request.id, _in_its_own_name(bridge.seal_state(edge, call, raw))))
    if not request.modern or not call.upstream_modern or b'"resultType"' not in raw:
        raw = translate.result_for_client(raw, request.modern, call.method)
    if call.result_type == "task" or call.method in targets.TASKS:
        raw = tasks.shown(edge, call, raw)
    raw = rewrite.result(call.ruling.catalog, call.visit.door, call.server, call.method, raw)
    return Reply(200, result_body(request.id, _in_its_own_name(raw)))


def _cancelled(call: Ongoing, given: Answer) -> Reply:
    """Whether the server has heard it, and nothing more: whoever may not call the tool any more may still stop it."""
    assert call.request.id is not None
    if given.error:
        return error(call, RpcError(decode_error(given.error).code, f"{call.server} did not take the cancellation"))
    return Reply(200, result_body(call.request.id, tasks.CANCELLED))


def _not_asked(call: Ongoing, unfit: str | dict[str, Any]) -> Reply:
    """2026-07-28 basic/patterns/mrtr: a server must not ask for what the client did not declare."""
    if isinstance(unfit, str):
        return refused(call, unfit, decision="allow", reason="upstream-malformed")
    sentence = f"{call.server} asks for {', '.join(sorted(unfit))}, which this client did not declare"
    return error(call, RpcError(MISSING_CAPABILITY, sentence, {"requiredCapabilities": unfit}))


def _in_its_own_name(raw: bytes) -> bytes:
    """A result without what is the gateway's alone to say; the same bytes where there is nothing of it."""
    if _DECISION_MARK not in raw and not _has_escapes(raw):
        return raw
    fields = decode_fields(raw)
    try:
        meta = decode_fields(fields["_meta"])
    except (KeyError, msgspec.DecodeError):
        return raw
    if meta.pop(DECISION_META, None) is None:
        return raw
    return encode({**fields, "_meta": meta})


def _has_escapes(raw: bytes) -> bool:
    """Those in which a name may hide. One character is looked for at a fraction of what two cost."""
    return b"\\" in raw and (b"\\/" in raw or b"\\u" in raw)


def _upstream_error(edge: Edge, call: Ongoing, raw: bytes) -> Reply:
    given = decode_error(raw)
    asked = bridge.url_elicitations(given, call)
    if asked:
        return _answer(edge, call, Paused(asked, b""))
    if call.request.modern and given.code == URL_ELICITATION_REQUIRED:
        lacking: dict[str, Any] = {"requiredCapabilities": {"elicitation": {"url": {}}}}
        return error(call, RpcError(MISSING_CAPABILITY, given.message, lacking))
    if not call.request.modern and given.code == MISSING_CAPABILITY and call.is_tool_call:
        return refused(call, f"{call.server}: {given.message}", decision="allow", reason="client-lacks-capability")
    if isinstance(given.data, dict) and DECISION_META in given.data:  # the gateway's alone to say
        data = {key: value for key, value in given.data.items() if key != DECISION_META}
        given = RpcError(given.code, given.message, data)
    told = translate.error_for_client(given, call)
    if isinstance(told.data, dict) and isinstance(told.data.get("uri"), str) and call.ruling is not None:
        shown = rewrite.uri(call.ruling.catalog, call.visit.door, call.server, told.data["uri"])
        told = RpcError(told.code, told.message, {**told.data, "uri": shown})
    return error(call, told)


def refused(call: Ongoing, sentence: str, **details: Any) -> Reply:
    """A tool error, or for other methods a JSON-RPC error, with what was decided and why."""
    request = call.request
    assert request.id is not None
    about = {
        "id": call.call_id,
        "reason": call.reason,
        "rules": call.rules,
        "stage": call.stage,
        "bundle": call.bundle,
        **details,
    }
    if not call.is_tool_call:
        return error(call, RpcError(NOT_PERMITTED, sentence, {DECISION_META: about}))
    result: dict[str, Any] = {
        "content": [{"type": "text", "text": sentence}],
        "isError": True,
        "_meta": {DECISION_META: about},
    }
    if request.modern:
        result["resultType"] = "complete"
    return Reply(200, result_body(request.id, encode(result)))


def error(call: Ongoing, given: RpcError, status: int | None = None) -> Reply:
    """A JSON-RPC error of a recorded call."""
    if status is None:
        status = ERROR_CODE_HTTP_STATUS.get(given.code, 200) if call.request.modern else 200
    return Reply(status, error_body(call.request.id, given.code, given.message, given.data), recorded=True)
