"""What a server of the handshake era asks of its client: what is answered here, what is put to the client, and what the
server is told when the client does not answer. Pure.
"""

from typing import Any, Final

import msgspec

from tidegate.limits import QUESTION_BYTES_MAX
from tidegate_edge import abilities, strict_json
from tidegate_edge.messages import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, RequestId, RpcError, encode
from tidegate_edge.upstream.port import Answer, Asked

GATHER_S: Final = 0.03  # what a server asks at once is put to the client at once
TOO_LARGE: Final = f"a question has {QUESTION_BYTES_MAX} bytes at most"
ASKED_MAX: Final = 16  # of a client at a time, by one request


class Pending(msgspec.Struct, frozen=True):
    """A server's question that waits for the client's answer."""

    server_id: RequestId
    asked: Asked

    @property
    def is_bare(self) -> bool:
        """Its params were too large to be kept in a ticket: it cannot be asked again."""
        return not self.asked.params

    @property
    def withdrawal(self) -> Answer:
        """What the server is told when the client does not answer."""
        if self.asked.method == "elicitation/create":
            return Answer(result=b'{"action":"cancel"}')
        return refusal(-1, "the client went away")


def own_answer(asked: Asked, capabilities: bytes, waiting: int) -> Answer | None:
    """What the client need not be asked for: it declared `capabilities`, and `waiting` questions are put to it."""
    if asked.method == "ping":
        return Answer(result=b"{}")
    if len(asked.params) > QUESTION_BYTES_MAX:
        return refusal(INVALID_PARAMS, TOO_LARGE)
    try:
        params: Any = strict_json.read(asked.params)
    except (strict_json.NotStrictJson, msgspec.DecodeError):
        params = None
    if not isinstance(params, dict):
        return refusal(INVALID_PARAMS, "params must be an object that reads in one way")
    if not abilities.of_legacy(capabilities).can_answer(asked.method, params):
        return refusal(METHOD_NOT_FOUND, "the client declared no such capability")
    if waiting >= ASKED_MAX:
        return refusal(INTERNAL_ERROR, f"more than {ASKED_MAX} questions at once")
    return None


def refusal(code: int, message: str) -> Answer:
    return Answer(error=encode(RpcError(code, message)))
