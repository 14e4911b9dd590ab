"""reply: what the client is told. A denial is a tool result with a sentence for the model and details in `_meta`."""

from typing import Any, Final

from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS

from tidegate.errors import Fault, UpstreamFault
from tidegate_edge import translate
from tidegate_edge.calls import Ongoing
from tidegate_edge.messages import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Reply,
    decode_error,
    encode,
    error_body,
    result_body,
)

HEADER_MISMATCH_REASON: Final = "header-mismatch"
DECISION_META: Final = "tidegate/decision"
BLOCKED_RESULT: Final = "The tool answered, but its result holds something that may not be passed on."
_RESOURCE_NOT_FOUND_LEGACY: Final = -32002


def refusal(call: Ongoing) -> Reply:
    """Not forwarded. An unknown and a hidden tool are told in the same words."""
    if call.hidden:
        return _error(call, INVALID_PARAMS, unknown_tool(call))
    if call.reason == HEADER_MISMATCH_REASON:
        return _error(call, HEADER_MISMATCH, call.message)
    return _tool_error(call, call.message or "This call is not permitted.", decision=call.decision)


def unknown_tool(call: Ongoing) -> str:
    return f"Unknown tool: {call.request.params.get('name', '')!s:.128}"


def unavailable(call: Ongoing, fault: Fault) -> Reply:
    """The log cannot take the record, so nothing was done (or, after the call, nothing is said)."""
    sentence = (
        f"The call could not be recorded, so it was not {'answered' if call.forwarded_us else 'made'}: {fault.sentence}"
    )
    return _error(call, INTERNAL_ERROR, sentence, {"reason": fault.code}, status=503)


def upstream_failed(call: Ongoing, fault: UpstreamFault) -> Reply:
    executed = "It may have been carried out." if fault.sent else "It was not carried out."
    return _tool_error(call, f"The server {call.tool_server} failed: {fault.sentence}. {executed}", reason=fault.code)


def blocked_result(call: Ongoing, rule: str) -> Reply:
    return _tool_error(call, f"{BLOCKED_RESULT} (rule {rule})", decision="deny", reason="result-blocked", rules=[rule])


def answer(call: Ongoing, raw: bytes, *, is_error: bool) -> Reply:
    """The upstream's own answer, inspected, in the client's era."""
    request = call.request
    assert request.id is not None
    if is_error:
        return _upstream_error(call, raw)
    if not request.modern and translate.asks_for_input(raw):
        return _tool_error(
            call, f"{call.tool_server} asks for input in a way that this client's protocol revision cannot answer."
        )
    return Reply(200, result_body(request.id, translate.result_for_client(raw, request.modern)))


def _upstream_error(call: Ongoing, raw: bytes) -> Reply:
    error = decode_error(raw)
    code = error.code
    if call.request.modern and code == _RESOURCE_NOT_FOUND_LEGACY:
        code = INVALID_PARAMS
    status = ERROR_CODE_HTTP_STATUS.get(code, 200) if call.request.modern else 200
    return Reply(status, error_body(call.request.id, code, error.message, error.data), recorded=True)


def _tool_error(call: Ongoing, sentence: str, **details: Any) -> Reply:
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
    result: dict[str, Any] = {
        "content": [{"type": "text", "text": sentence}],
        "isError": True,
        "_meta": {DECISION_META: about},
    }
    if request.modern:
        result["resultType"] = "complete"
    return Reply(200, result_body(request.id, encode(result)))


def _error(call: Ongoing, code: int, message: str, data: Any = None, status: int | None = None) -> Reply:
    if status is None:
        status = ERROR_CODE_HTTP_STATUS.get(code, 200) if call.request.modern else 200
    return Reply(status, error_body(call.request.id, code, message, data), recorded=True)
