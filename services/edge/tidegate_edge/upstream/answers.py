"""A server's bytes as answers and faults. Pure; shared by both eras.

Which response answers a request is said by its id alone; an error without a readable id answers the only request of
its HTTP answer.
"""

from typing import Any, Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.limits import LARGE_BYTES
from tidegate_edge import messages, strict_json
from tidegate_edge.messages import RequestId, Wire
from tidegate_edge.upstream.connection import Hear, Response
from tidegate_edge.upstream.port import Answer
from tidegate_edge.upstream.sse import Event

_WORDS_MAX: Final = 200  # of a server's own words in a fault's sentence


class Unanswered(UpstreamFault):
    """The server answered, and not with a JSON-RPC response to the request."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def read_wire(raw: bytes) -> Wire | None:
    """The message in these bytes, None where there is none."""
    try:
        return messages.decode_wire(raw)
    except msgspec.DecodeError:
        return None


def answer_in(wire: Wire, request_id: RequestId) -> Answer | None:
    """The response to `request_id`, if this is it."""
    if wire.method is not msgspec.UNSET:
        return None
    if wire.result is not msgspec.UNSET:
        return Answer(result=bytes(wire.result)) if wire.id == request_id else None
    if wire.error is msgspec.UNSET or bytes(wire.error)[:1] != b"{":  # {"error": "invalid_token"} is OAuth's
        return None
    if wire.id in (request_id, None, msgspec.UNSET):
        return Answer(error=bytes(wire.error))
    return None


def hear_answer(request_id: RequestId) -> Hear:
    """For an exchange of which nothing but the answer is of interest."""

    def hear(event: Event) -> Answer | None:
        wire = read_wire(event.data)
        return None if wire is None else answer_in(wire, request_id)

    return hear


def params_of(wire: Wire) -> bytes:
    return b"{}" if wire.params is msgspec.UNSET else bytes(wire.params)


def answer_of(name: str, response: Response, request_id: RequestId) -> Answer:
    """The answer that a finished exchange holds. Raises UpstreamFault."""
    if response.answer is not None:
        return response.answer
    wire = read_wire(response.body)
    answer = None if wire is None else answer_in(wire, request_id)
    if answer is not None:
        return answer
    if response.status in (401, 403):
        raise UpstreamFault(
            f"{name}: refused the gateway's credential ({response.status}); see servers.{name}.headers",
            code="upstream-unauthorized",
        )
    kind = response.headers.get(b"content-type", b"nothing").decode("latin-1")[:80]
    if 0 < len(response.body) <= LARGE_BYTES and kind.startswith("application/json"):
        _check_strict(name, response.body)
    if response.is_stream:
        raise Unanswered(f"{name}: the event stream ended without this request's response", response.status)
    said = f": {_message(wire)}" if wire is not None and wire.error is not msgspec.UNSET else ""
    sentence = f"{name}: answered {response.status} with {kind}, not with this request's response{said}"
    raise Unanswered(sentence, response.status)


def _check_strict(name: str, body: bytes) -> None:
    try:
        strict_json.read(body)
    except strict_json.NotStrictJson as error:
        raise UpstreamFault(f"{name}: the answer is refused: {error}", code="upstream-malformed") from error


def _message(wire: Wire) -> str:
    assert wire.error is not msgspec.UNSET
    return error_message(bytes(wire.error))


def error_message(error: bytes) -> str:
    """A server's words about an error, bounded."""
    try:
        return printable(messages.decode_error(error).message)
    except msgspec.DecodeError:
        return printable(error[:_WORDS_MAX].decode(errors="replace"))


def printable(words: str) -> str:
    """A server's words as they may stand in a sentence that is logged: bounded, on one line, without controls."""
    return "".join(one if one.isprintable() else " " for one in words[:_WORDS_MAX])


def error_code(answer: Answer) -> int:
    """0 where it is no error, or one without a code."""
    if not answer.error:
        return 0
    try:
        return messages.decode_error(answer.error).code
    except msgspec.DecodeError:
        return 0


def fields_of(raw: bytes) -> dict[str, Any]:
    """A JSON object's members; {} where it is none."""
    try:
        return dict(messages.decode_fields(raw))
    except msgspec.DecodeError:
        return {}


def response_body(request_id: RequestId, answer: Answer) -> bytes:
    """A JSON-RPC response as we send it to a server that asked."""
    if answer.error:
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (messages.encode(request_id), answer.error)
    return messages.result_body(request_id, answer.result)


def nothing_sent(fault: UpstreamFault) -> UpstreamFault:
    """A fault while getting ready is no fault of the request: that was not sent."""
    return UpstreamFault(fault.sentence, code=fault.code, sent=False)
