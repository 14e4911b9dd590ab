"""Params, results and errors between the eras, and the states that clients carry between rounds."""

import json
from typing import Any

import msgspec
import pytest

from tidegate.claims import Principal
from tidegate.ids import SubjectId
from tidegate.sealing import Sealer, SealingKey
from tidegate_edge import abilities, bridge, translate
from tidegate_edge.accept import Request
from tidegate_edge.calls import Inputs, Ongoing, Terms
from tidegate_edge.messages import RpcError, decode_fields
from tidegate_edge.shelves import Item
from tidegate_edge.talk import is_loud_enough
from tidegate_edge.upstream.port import Asked, Paused
from tidegate_edge.visit import Visit

PREFIX = "io.modelcontextprotocol/"
META: dict[str, Any] = {
    PREFIX + "protocolVersion": "2026-07-28",
    PREFIX + "clientCapabilities": {},
    PREFIX + "clientInfo": {"name": "tests", "version": "1"},
}
PRINCIPAL = Principal(
    tenant="t",
    issuer="i",
    subject="alice",
    subject_id=SubjectId("s"),
    user="alice",
    login="alice",
    agent="cli",
    agent_source="client_id",
    actors=(),
    groups=(),
    scopes=(),
    token_id="",
    sid="",
    issued_us=0,
    expires_us=0,
    key="",
)


def ongoing(method: str, params: dict[str, Any], modern: bool, *, upstream_modern: bool = True) -> Ongoing:
    raw = json.dumps(params).encode()
    request = Request(method, 1, params, raw, modern, "2026-07-28" if modern else "2025-11-25")
    item = Item("up", "echo", "up__echo", "", (), {}, raw_name=msgspec.Raw(b'"echo"'), action="echo")
    call = Ongoing(Visit(PRINCIPAL, "", "w"), request, item, "echo", Terms(), 1_000_000)
    call.members = decode_fields(raw)
    call.arguments = b'{"as":"decided"}' if method in translate.NAMED else b'{"uri":"x://own"}'
    call.upstream_modern = upstream_modern
    return call


def sent(call: Ongoing, upstream_modern: bool) -> Any:
    return json.loads(translate.params_for_upstream(call, upstream_modern))


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("upstream_modern", [True, False])
def test_params_arrive_in_the_upstream_s_era_with_the_arguments_as_decided(modern: bool, upstream_modern: bool) -> None:
    meta = {**(META if modern else {}), "traceparent": "00-1", "x": [1.50]}
    call = ongoing("tools/call", {"name": "up__echo", "arguments": {"a": 1}, "_meta": meta, "vendor": {"k": 1}}, modern)
    got = sent(call, upstream_modern)
    assert (got["name"], got["arguments"]) == ("echo", {"as": "decided"})
    assert "vendor" not in got, "neither rules nor whoever approves a call have seen it"
    assert (got["_meta"]["traceparent"], got["_meta"]["x"]) == ("00-1", [1.5])
    assert (PREFIX + "protocolVersion" in got["_meta"]) == upstream_modern
    assert (PREFIX + "clientCapabilities" in got["_meta"]) == upstream_modern


def test_within_an_era_meta_goes_on_byte_for_byte() -> None:
    call = ongoing("tools/call", {"name": "n", "arguments": {}, "_meta": META}, True)
    raw = call.members["_meta"]
    assert bytes(raw) in translate.params_for_upstream(call, True)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("upstream_modern", [True, False])
def test_progress_is_asked_for_under_a_token_of_the_gateway_s_own(modern: bool, upstream_modern: bool) -> None:
    call = ongoing("tools/call", {"name": "n", "_meta": {**(META if modern else {}), "progressToken": 7}}, modern)
    assert translate.progress_token(call) == call.call_id
    assert sent(call, upstream_modern)["_meta"]["progressToken"] == call.call_id


def test_what_a_legacy_client_declared_and_set_travels_in_each_request_to_a_modern_server() -> None:
    call = ongoing("tools/call", {"name": "n"}, False)
    call.abilities = abilities.of_legacy(b'{"sampling":{},"elicitation":{"url":{}},"experimental":{"x":1}}')
    call.log_level = "warning"
    meta = sent(call, True)["_meta"]
    assert meta[PREFIX + "clientCapabilities"] == {"elicitation": {"url": {}}, "sampling": {}}
    assert meta[PREFIX + "logLevel"] == "warning"


def test_answers_and_the_server_s_own_state_go_back_to_a_modern_server() -> None:
    params = {"name": "n", "requestState": "sealed", "inputResponses": {"k": {"action": "accept"}}, "_meta": META}
    call = ongoing("tools/call", params, True)
    call.inputs = Inputs("root", 1, "own", {"k": msgspec.Raw(b'{"action":"accept"}')})
    got = sent(call, True)
    assert (got["requestState"], got["inputResponses"]) == ("own", {"k": {"action": "accept"}})
    call.inputs = None
    assert "requestState" not in sent(call, True)


def test_a_resource_is_asked_for_under_its_server_s_own_uri() -> None:
    got = sent(ongoing("resources/read", {"uri": "x://shown", "_meta": META}, True), True)
    assert got["uri"] == "x://own"
    assert "name" not in got


def test_params_without_arguments_stay_without() -> None:
    assert sent(ongoing("tools/call", {"name": "x"}, False), False) == {"name": "echo"}


@pytest.mark.parametrize(
    ("raw", "modern", "expected"),
    [
        (b"{}", True, {"resultType": "complete"}),
        (b"{ }", True, {"resultType": "complete"}),
        (b'{"content":[]}', True, {"resultType": "complete", "content": []}),
        (b'{"content":[],"resultType":"x"}', True, {"content": [], "resultType": "x"}),
        (b'{"content":["\\"resultType\\""]}', True, {"content": ['"resultType"'], "resultType": "complete"}),
        (b'{"content":[{"resultType":1}]}', True, {"content": [{"resultType": 1}], "resultType": "complete"}),
        (b'{"content":[]}', False, {"content": []}),
        (b'{"content":[],"resultType":"complete","ttlMs":1,"cacheScope":"x","k":1}', False, {"content": [], "k": 1}),
        (b'{"content":[{"resultType":1}],"ttlMs":5}', False, {"content": [{"resultType": 1}], "ttlMs": 5}),
        (b'{"resultType":"complete","structuredContent":[1]}', False, {}),
        (b'{"resultType":"complete","structuredContent": {"a":1}}', False, {"structuredContent": {"a": 1}}),
    ],
)
def test_results_go_out_in_the_client_s_era(raw: bytes, modern: bool, expected: Any) -> None:
    assert json.loads(translate.result_for_client(raw, modern, "tools/call")) == expected


def test_a_legacy_resource_gets_the_caching_hints_that_the_modern_schema_requires() -> None:
    got = json.loads(translate.result_for_client(b'{"contents":[]}', True, "resources/read"))
    assert got == {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "contents": []}


def test_a_result_of_the_client_s_era_is_not_touched() -> None:
    legacy = b'{ "content" : [ ] , "x":1.50 }'
    assert translate.result_for_client(legacy, False, "tools/call") is legacy


def test_a_resource_not_found_has_the_code_of_the_client_s_era_and_names_the_uri() -> None:
    call = ongoing("resources/read", {"uri": "x://gone"}, True, upstream_modern=False)
    told = translate.error_for_client(RpcError(-32002, "gone"), call)
    assert (told.code, told.data) == (-32602, {"uri": "x://gone"})


@pytest.mark.parametrize("modern", [True, False])
def test_codes_that_one_era_reserves_do_not_reach_the_other(modern: bool) -> None:
    call = ongoing("tools/call", {"name": "n"}, modern, upstream_modern=not modern)
    assert translate.error_for_client(RpcError(-32021, "x"), call).code == -32603
    same = ongoing("tools/call", {"name": "n"}, modern, upstream_modern=modern)
    assert translate.error_for_client(RpcError(-32021, "x"), same).code == -32021


# states


class SealingEdge:
    """What the bridge needs of an edge."""

    def __init__(self) -> None:
        self.sealer = Sealer([SealingKey.generate()])


def retried(call: Ongoing, result: bytes, **changes: Any) -> Ongoing:
    told = json.loads(result)
    params = {**call.request.params, "requestState": told["requestState"], **changes}
    return ongoing(call.request.method, params, True)


def test_a_paused_server_s_questions_come_back_with_the_client_s_answers() -> None:
    edge: Any = SealingEdge()
    call = ongoing("tools/call", {"name": "n", "arguments": {"a": 1}, "_meta": META}, True)
    paused = Paused({"q": Asked("elicitation/create", b'{"message":"m","elicitationId":"e"}')}, b"ticket", "edge7")
    result = bridge.pause_result(edge, call, paused)
    asked = json.loads(result)["inputRequests"]
    assert asked == {"q": {"method": "elicitation/create", "params": {"message": "m"}}}
    again = retried(call, result, inputResponses={"q": {"action": "decline"}})
    inputs = bridge.inputs_of(edge, again.visit, again)
    assert inputs is not None
    assert (inputs.root, inputs.ticket, inputs.held_by) == (call.root, b"ticket", "edge7")
    assert bridge.unanswered(inputs) == {}
    silent = retried(call, result, inputResponses={"other": {}})
    inputs = bridge.inputs_of(edge, silent.visit, silent)
    assert inputs is not None
    assert list(bridge.unanswered(inputs)) == ["q"]


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"a": 2}},
        {"arguments": {"a": 1.0}},
        {"name": "other"},
        {"requestState": "forged"},
        {"requestState": 7},
    ],
)
def test_a_state_holds_for_the_request_that_it_was_made_for_alone(changes: dict[str, Any]) -> None:
    edge: Any = SealingEdge()
    call = ongoing("tools/call", {"name": "n", "arguments": {"a": 1}, "_meta": META}, True)
    result = bridge.seal_state(edge, call, b'{"resultType":"input_required","requestState":"own"}')
    fine = retried(call, result)
    inputs = bridge.inputs_of(edge, fine.visit, fine)
    assert inputs is not None
    assert inputs.state == "own"
    again = retried(call, result, **changes)
    with pytest.raises(bridge.StateRefused):
        bridge.inputs_of(edge, again.visit, again)


def test_a_state_holds_for_every_digit() -> None:
    edge: Any = SealingEdge()
    call = ongoing("tools/call", {"name": "n", "arguments": {"b": 0.5, "a": 77777}, "_meta": META}, True)
    call.request, plain = written(call.request, "9007199254740992.0"), call.request
    told = json.loads(bridge.seal_state(edge, call, b'{"resultType":"input_required","requestState":"own"}'))
    call.request.params["requestState"] = told["requestState"]
    call.members["requestState"] = msgspec.Raw(b'"..."')
    assert bridge.inputs_of(edge, call.visit, call) is not None
    for other in ("9007199254740993.0", "9007199254740992.00", "9007199254740992"):
        call.request = written(plain, other)
        with pytest.raises(bridge.StateRefused):
            bridge.inputs_of(edge, call.visit, call)


def written(request: Request, digits: str) -> Request:
    """With that number as it is written; what was read of it stays."""
    return msgspec.structs.replace(request, raw_params=request.raw_params.replace(b"77777", digits.encode()))


def test_answers_to_what_was_not_asked_go_nowhere() -> None:
    edge: Any = SealingEdge()
    call = ongoing("tools/call", {"name": "n", "_meta": META}, True)
    questions = b'{"q":{"method":"elicitation/create","params":{}}}'
    result = bridge.seal_state(edge, call, b'{"resultType":"input_required","inputRequests":' + questions + b"}")
    again = retried(call, result, inputResponses={"q": {"action": "decline"}, "confirm": {"action": "accept"}})
    inputs = bridge.inputs_of(edge, again.visit, again)
    assert inputs is not None
    assert list(inputs.responses) == ["q"]
    assert json.loads(bytes(again.members["inputResponses"])) == {"q": {"action": "decline"}}
    assert not inputs.is_unasked


def test_a_state_serves_its_principal_at_its_door_alone() -> None:
    edge: Any = SealingEdge()
    call = ongoing("tools/call", {"name": "n", "_meta": META}, True)
    again = retried(call, bridge.seal_state(edge, call, b'{"resultType":"input_required","inputRequests":{}}'))
    mallory = msgspec.structs.replace(PRINCIPAL, subject_id="other")
    for visit in (Visit(mallory, "", "w"), Visit(PRINCIPAL, "up", "w")):
        with pytest.raises(bridge.StateRefused):
            bridge.inputs_of(edge, visit, again)


def test_an_expired_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    edge: Any = SealingEdge()
    call = ongoing("tools/call", {"name": "n", "_meta": META}, True)
    monkeypatch.setattr(bridge, "STATE_TTL_S", -1)
    again = retried(call, bridge.seal_state(edge, call, b'{"resultType":"input_required","inputRequests":{}}'))
    with pytest.raises(bridge.StateRefused):
        bridge.inputs_of(edge, again.visit, again)


# what clients can be asked, and what they hear


def test_elicitation_by_url_needs_its_own_word() -> None:
    form = abilities.of_legacy(b'{"elicitation":{}}')
    assert form.can_answer("elicitation/create", {"mode": "form"})
    assert not form.can_answer("elicitation/create", {"mode": "url"})
    assert abilities.of_legacy(b'{"elicitation":{"url":{}}}').can_answer("elicitation/create", {"mode": "url"})
    assert not form.can_answer("sampling/createMessage", {})
    assert not form.can_answer("tools/call", {})


def test_of_extensions_the_one_that_both_eras_have_is_declared_on() -> None:
    ui = {"mimeTypes": ["text/html;profile=mcp-app"]}
    given = {"io.modelcontextprotocol/ui": {**ui, "x": 1}, "io.modelcontextprotocol/tasks": {}, "vendor/x": {}}
    able = abilities.of_legacy(json.dumps({"extensions": given}).encode())
    assert json.loads(able.declared) == {"extensions": {"io.modelcontextprotocol/ui": ui}}
    assert able.names == frozenset()


@pytest.mark.parametrize("raw", [b"null", b"{}", b"[]", b"7", b'{"sampling":true}'])
def test_odd_capabilities_are_none(raw: bytes) -> None:
    assert abilities.of_legacy(raw).names == frozenset()


@pytest.mark.parametrize(
    ("level", "silent", "heard"),
    [("", True, False), ("", False, True), ("error", False, False), ("info", True, True), ("debug", True, True)],
)
def test_log_messages_are_as_severe_as_was_asked_for(level: str, silent: bool, heard: bool) -> None:
    assert is_loud_enough(b'{"level":"info","data":1}', level, silent_by_default=silent) is heard
    assert not is_loud_enough(b'{"level":7}', "debug", silent_by_default=False)
