"""Between two ways of asking the client: `input_required` and a second request (modern), and live requests (legacy).

What the gateway must know when the second request comes travels with the client, sealed: bound to the principal, the
door, the method and the arguments, and to a time. So any edge can go on. Source: 2026-07-28 basic/patterns/mrtr.
"""

import hashlib
import time
from typing import Any, Final

import msgspec

from tidegate import json_values
from tidegate.events import Channel
from tidegate.policy.approvals import Approval, as_sent
from tidegate_edge import approval_question
from tidegate_edge.abilities import ASKED_WITH, missing
from tidegate_edge.accept import Request
from tidegate_edge.calls import Approved, Inputs, Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.messages import (
    INVALID_PARAMS,
    URL_ELICITATION_REQUIRED,
    RpcError,
    careful,
    decode_fields,
    encode,
)
from tidegate_edge.upstream.port import Asked, Paused
from tidegate_edge.visit import Visit

PURPOSE: Final = "request-state"
STATE_TTL_S: Final = 600
ROUNDS_MAX: Final = 8
QUESTIONS_MAX: Final = 16  # of one round
RESUMABLE: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
_BESIDE: Final = frozenset({"_meta", "inputResponses", "requestState"})
INVALID_STATE: Final = RpcError(INVALID_PARAMS, "Invalid or expired requestState", {"reason": "invalid_request_state"})


class _State(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is sealed into a `requestState`. An edge of the next version must read it."""

    expires_s: int
    root: str
    rounds: int
    server: str
    target: str
    v: int = 1
    state: str | None = None
    ticket: bytes = b""
    held_by: str = ""
    asked: dict[str, Asked] = {}
    approval: str = ""  # the gateway's own question
    asked_by: Channel = "form"
    approved: Approved | None = None
    said: str = ""  # digest of what was called, to the last digit; "": of a version before
    questions: tuple[str, ...] = ()  # keys of what was asked otherwise than by `asked`


class InputRequest(msgspec.Struct, frozen=True):
    """One entry of `inputRequests`."""

    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _InputRequired(msgspec.Struct, frozen=True):
    inputRequests: dict[str, InputRequest] = {}
    requestState: str | None = None


_decode_state: Final = msgspec.json.Decoder(_State).decode
_decode_questions: Final = msgspec.json.Decoder(dict[str, InputRequest]).decode
_decode_input_required: Final = careful(msgspec.json.Decoder(_InputRequired).decode)
_decode_responses: Final = careful(msgspec.json.Decoder(dict[str, msgspec.Raw]).decode)


class StateRefused(Exception):
    """The client's requestState or inputResponses cannot be used; it is told INVALID_STATE or the given error."""

    def __init__(self, error: RpcError = INVALID_STATE) -> None:
        super().__init__(error.message)
        self.error = error


def inputs_of(edge: Edge, visit: Visit, call: Ongoing) -> Inputs | None:
    """What a modern client brings along; None where this is no further round. Raises StateRefused."""
    members = call.members
    if not call.request.modern or not ("requestState" in members or "inputResponses" in members):
        return None
    responses = _responses_in(members)
    if "requestState" not in members:
        return Inputs(root=call.call_id, rounds=0, responses=responses)
    sealed = call.request.params["requestState"]
    opened = edge.sealer.unseal(PURPOSE, sealed, binding(visit, call.request)) if isinstance(sealed, str) else None
    if opened is None:
        raise StateRefused
    state = _decode_state(opened)
    if state.expires_s < time.time() or (state.server, state.target) != (call.server, call.target):
        raise StateRefused
    if state.said not in ("", _said(call.request)):
        raise StateRefused
    if state.said:
        responses = {key: value for key, value in responses.items() if key in state.asked or key in state.questions}
        if "inputResponses" in members:
            members["inputResponses"] = msgspec.Raw(encode(responses))
    if state.approval:
        answer = responses.get(approval_question.KEY)
        return Inputs(state.root, state.rounds, approval=state.approval, asked_by=state.asked_by, answer=answer)
    return Inputs(
        state.root,
        state.rounds,
        state.state,
        responses,
        state.asked,
        state.ticket,
        state.held_by,
        approved=state.approved,
    )


def _responses_in(members: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    if "inputResponses" not in members:
        return {}
    try:
        return _decode_responses(members["inputResponses"])
    except msgspec.DecodeError:
        raise StateRefused(RpcError(INVALID_PARAMS, "inputResponses must be an object")) from None


def binding(visit: Visit, request: Request) -> bytes:
    """Whose and what a state is for: the same principal, door, method and client-visible arguments."""
    principal = visit.principal
    asked = {key: value for key, value in request.params.items() if key not in _BESIDE}
    digest = hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()
    return "|".join(
        (principal.tenant, principal.subject_id, principal.agent, visit.door, request.method, digest)
    ).encode()


def _said(request: Request) -> str:
    """`binding` reads numbers as a program does, to which many that differ are the same."""
    members = decode_fields(request.raw_params)
    asked = {key: as_sent(bytes(value)) for key, value in members.items() if key not in _BESIDE}
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


def _sealed(edge: Edge, call: Ongoing, *, expires_s: int = 0, **parts: Any) -> str:
    state = _State(
        expires_s=expires_s or int(time.time()) + STATE_TTL_S,
        root=call.root,
        rounds=call.inputs.rounds + 1 if call.inputs else 1,
        server=call.server,
        target=call.target,
        approved=call.approval_held,
        said=_said(call.request),
        **parts,
    )
    return edge.sealer.seal(PURPOSE, encode(state), binding(call.visit, call.request))


def approval_result(edge: Edge, call: Ongoing, approval: Approval, way: Channel, params: msgspec.Raw) -> bytes:
    """The gateway's own question as `input_required`. Raises ValueError: too large."""
    expires_s = -(-approval.expires_us // 1_000_000)
    asked = (approval_question.KEY,)
    state = _sealed(edge, call, expires_s=expires_s, approval=approval.approval_id, asked_by=way, questions=asked)
    requests = {approval_question.KEY: InputRequest("elicitation/create", params)}
    return encode({"resultType": "input_required", "inputRequests": requests, "requestState": state})


def seal_state(edge: Edge, call: Ongoing, result: bytes) -> bytes:
    """A modern upstream's `input_required` for a modern client: its state inside ours. Raises ValueError: too large."""
    fields = decode_fields(result)
    required = _decode_input_required(result)
    sealed = _sealed(edge, call, state=required.requestState, questions=tuple(required.inputRequests))
    fields["requestState"] = msgspec.Raw(encode(sealed))
    return encode(fields)


def unfit_questions(call: Ongoing, result: bytes) -> str | dict[str, Any]:
    """Why a modern client cannot be asked what a modern server asks: a sentence, or the capabilities that it lacks;
    {} where it can. Raises msgspec.DecodeError, ValueError.
    """
    asked, _ = asked_in(result)
    if len(asked) > QUESTIONS_MAX:
        return f"{call.server} asks {len(asked)} questions at once; {QUESTIONS_MAX} are allowed."
    pairs: list[tuple[str, dict[str, Any]]] = []
    for one in asked.values():
        params = json_values.decode(one.params)
        if one.method not in ASKED_WITH or not isinstance(params, dict):
            return f"{call.server} asks for something that no client is asked for: {one.method[:64]}"
        pairs.append((one.method, params))
    return missing(pairs, call.abilities)


def pause_result(edge: Edge, call: Ongoing, paused: Paused) -> bytes:
    """A legacy upstream's questions as `input_required` for a modern client. Raises ValueError: too large."""
    requests = {key: _modern_request(asked) for key, asked in paused.asked.items()}
    state = _sealed(edge, call, ticket=paused.ticket, held_by=paused.edge, asked=paused.asked)
    return encode({"resultType": "input_required", "inputRequests": requests, "requestState": state})


def _modern_request(asked: Asked) -> InputRequest:
    """`elicitationId` has left the protocol with 2026-07-28."""
    params = decode_fields(asked.params)
    params.pop("elicitationId", None)
    params.pop("_meta", None)
    return InputRequest(asked.method, msgspec.Raw(encode(params)))


def url_elicitations(error: RpcError, call: Ongoing) -> dict[str, Asked]:
    """What a legacy upstream's -32042 asks of a modern client; {} for any other error. The retry calls again."""
    if error.code != URL_ELICITATION_REQUIRED or not call.request.modern or call.method not in RESUMABLE:
        return {}
    listed = error.data.get("elicitations") if isinstance(error.data, dict) else None
    asked: dict[str, Asked] = {}
    for index, one in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(one, dict) and call.abilities.can_answer("elicitation/create", {"mode": "url"}):
            asked[f"url-{index}"] = Asked("elicitation/create", encode({**one, "mode": "url"}))
    return asked


def questions(paused: Paused) -> bytes:
    """What is asked, as JSON, to be inspected and recorded."""
    return encode({key: InputRequest(asked.method, msgspec.Raw(asked.params)) for key, asked in paused.asked.items()})


def with_questions(paused: Paused, questions: bytes) -> Paused:
    """The same with what is asked as the inspection left it."""
    read = _decode_questions(questions)
    asked = {key: Asked(one.method, bytes(one.params)) for key, one in read.items()}
    return Paused(asked, paused.ticket, paused.edge)


def unanswered(inputs: Inputs) -> dict[str, Asked]:
    """What a paused upstream still waits for: it is asked again, not failed."""
    return {key: asked for key, asked in inputs.asked.items() if not _is_object(inputs.responses.get(key))}


def _is_object(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw).lstrip().startswith(b"{")


def asked_in(result: bytes) -> tuple[dict[str, InputRequest], str | None]:
    """(inputRequests, requestState) of a modern upstream's `input_required`. Raises msgspec.DecodeError."""
    required = _decode_input_required(result)
    return required.inputRequests, required.requestState
