"""accept, as tables: what each revision asks of a request, and the exact refusal."""

import json
from typing import Any

import pytest
from tests.parts.edge import modern_body

from tidegate.limits import BATCH_MEMBERS_MAX
from tidegate_edge.accept import Batch, Request, Response, accept
from tidegate_edge.messages import Reply

META = "io.modelcontextprotocol/"
PLAIN = {b"content-type": b"application/json", b"accept": b"application/json, text/event-stream", b"host": b"h"}
CALL = {"name": "echo", "arguments": {}}


def modern_headers(method: str = "tools/call", name: str | None = "echo", **more: bytes | None) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes | None] = {
        **PLAIN,
        b"mcp-protocol-version": b"2026-07-28",
        b"mcp-method": method.encode(),
        b"mcp-name": name.encode() if name is not None else None,
        **{key.replace("_", "-").encode(): value for key, value in more.items()},
    }
    return {key: value for key, value in headers.items() if value is not None}


def legacy(body: Any, version: bytes = b"2025-11-25", session: bytes = b"s1") -> Request | Response | Batch | Reply:
    headers = {**PLAIN, b"mcp-protocol-version": version, b"mcp-session-id": session}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return accept({key: value for key, value in headers.items() if value}, raw)


def refused(outcome: Any) -> tuple[int, int, Any]:
    """(status, code, whole error) of a refusal."""
    assert isinstance(outcome, Reply)
    body = json.loads(outcome.body)
    assert body["jsonrpc"] == "2.0"
    return outcome.status, body["error"]["code"], body


def message(method: str = "ping", request_id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, **more}


# revision 2026-07-28


def test_a_modern_call_is_accepted_with_its_params_byte_for_byte() -> None:
    body = modern_body("tools/call", {"name": "echo", "arguments": {"a": 1.50}}).replace(b'"a": 1.5', b'"a":  1.50')
    request = accept(modern_headers(), body)
    assert isinstance(request, Request)
    assert (request.modern, request.version, request.method, request.id) == (True, "2026-07-28", "tools/call", 1)
    assert request.raw_params in body
    assert b'"a":  1.50' in request.raw_params
    assert request.client_info == {"name": "tests", "version": "1"}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (modern_headers(method="tools/list"), 400, -32020),
        (modern_headers(mcp_method=None), 400, -32020),
        (modern_headers(method="Tools/Call"), 400, -32020),
        (modern_headers(name="other"), 400, -32020),
        (modern_headers(name=None), 400, -32020),
        (modern_headers(name=""), 400, -32020),
        (modern_headers(name="ECHO"), 400, -32020),
        (modern_headers(name="=?base64?ZWNobw?="), 400, -32020),  # no padding
        (modern_headers(name="=?base64?!!!?="), 400, -32020),
        (modern_headers(mcp_protocol_version=b"2025-11-25"), 400, -32020),
        (modern_headers(mcp_protocol_version=None), 400, -32020),
    ],
)
def test_headers_that_disagree_with_the_body_are_refused(headers: dict[bytes, bytes], status: int, code: int) -> None:
    got = refused(accept(headers, modern_body("tools/call", CALL, "id-1")))
    assert got[:2] == (status, code)
    assert got[2]["id"] == "id-1"


@pytest.mark.parametrize("name", ["echo", "=?base64?ZWNobw==?="])
def test_a_name_may_come_plain_or_as_a_base64_sentinel(name: str) -> None:
    assert isinstance(accept(modern_headers(name=name), modern_body("tools/call", CALL)), Request)


@pytest.mark.parametrize("name", ["naïve", "two words ", "zeile\nzwei", "工具"])
def test_a_name_that_no_header_can_carry_plain_comes_as_a_sentinel(name: str) -> None:
    import base64

    sentinel = f"=?base64?{base64.b64encode(name.encode()).decode()}?="
    request = accept(modern_headers(name=sentinel), modern_body("tools/call", {"name": name}))
    assert isinstance(request, Request)
    assert request.params["name"] == name


@pytest.mark.parametrize("missing", ["protocolVersion", "clientCapabilities"])
def test_a_missing_envelope_key_is_named(missing: str) -> None:
    body = json.loads(modern_body("tools/list"))
    del body["params"]["_meta"][META + missing]
    status, code, whole = refused(accept(modern_headers("tools/list", None), json.dumps(body).encode()))
    assert (status, code) == (400, -32602)
    assert META + missing in whole["error"]["message"]


@pytest.mark.parametrize("params", [{}, {"_meta": None}, {"_meta": []}, {"_meta": {}}])
def test_a_modern_request_without_an_envelope_is_refused(params: dict[str, Any]) -> None:
    body = json.dumps(message("tools/list", params=params)).encode()
    assert refused(accept(modern_headers("tools/list", None), body))[:2] == (400, -32602)


def test_an_unsupported_revision_is_told_which_ones_are() -> None:
    body = modern_body("tools/list").replace(b"2026-07-28", b"2027-01-01")
    headers = modern_headers("tools/list", None, mcp_protocol_version=b"2027-01-01")
    status, code, whole = refused(accept(headers, body))
    assert (status, code) == (400, -32022)
    assert whole["error"]["data"] == {"supported": ["2026-07-28"], "requested": "2027-01-01"}


def test_a_modern_notification_is_acknowledged() -> None:
    body = json.loads(modern_body("notifications/cancelled"))
    del body["id"]
    outcome = accept(modern_headers("notifications/cancelled", None), json.dumps(body).encode())
    assert isinstance(outcome, Reply)
    assert (outcome.status, outcome.body) == (202, b"")


# revisions with sessions


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18", "2025-11-25", ""])
def test_legacy_requests_are_accepted_in_their_session(version: str) -> None:
    request = legacy(message("tools/list"), version.encode())
    assert isinstance(request, Request)
    assert (request.modern, request.session, request.version) == (False, "s1", version or "2025-03-26")


def test_a_request_without_a_session_is_refused_unless_it_initializes() -> None:
    assert refused(legacy(message("tools/list"), session=b""))[:2] == (400, -32600)
    assert isinstance(legacy(message("initialize"), session=b""), Request)


@pytest.mark.parametrize("version", [b"2024-11-05", b"1", b"2099-01-01", b"\xff"])
def test_an_unknown_revision_is_refused_with_those_that_are_served(version: bytes) -> None:
    status, code, whole = refused(legacy(message(), version))
    assert (status, code) == (400, -32600)
    assert "2025-11-25" in whole["error"]["message"]


@pytest.mark.parametrize("request_id", [None, True, False, 1.0, 1.5, [1], {"a": 1}])
def test_ids_that_are_neither_string_nor_integer_are_refused(request_id: Any) -> None:
    status, code, whole = refused(legacy(message(request_id=request_id)))
    assert (status, code, whole["id"]) == (400, -32600, None)


@pytest.mark.parametrize("request_id", [0, 1, -7, 2**53, "", "1", "ünï", "a" * 1000])
def test_ids_keep_their_value_and_type(request_id: Any) -> None:
    request = legacy(message(request_id=request_id))
    assert isinstance(request, Request)
    assert request.id == request_id
    assert type(request.id) is type(request_id)
    assert refused(legacy(message(request_id=request_id), b"nonsense"))[2]["id"] == request_id


@pytest.mark.parametrize("request_id", [10**25, -(10**40)])
def test_an_integer_of_any_size_comes_back_whole(request_id: int) -> None:
    assert refused(legacy(message(request_id=request_id), b"nonsense"))[2]["id"] == request_id


def test_a_notification_is_a_request_without_an_id() -> None:
    outcome = legacy({"jsonrpc": "2.0", "method": "notifications/initialized"})
    assert isinstance(outcome, Request)
    assert outcome.id is None


@pytest.mark.parametrize(("key", "raw"), [("result", '{"a":  1.0}'), ("error", '{"code": -1, "message": "no"}')])
def test_an_answer_to_a_server_s_question_is_taken_byte_for_byte(key: str, raw: str) -> None:
    outcome = legacy(f'{{"jsonrpc":"2.0","id":"q-1","{key}":{raw}}}'.encode())
    assert isinstance(outcome, Response)
    assert (outcome.id, outcome.session, getattr(outcome, key)) == ("q-1", "s1", raw.encode())


@pytest.mark.parametrize(
    "body", [{"error": {}}, {"result": {}}, {"id": 1, "result": {}, "error": {}}, {"id": None, "result": {}}]
)
def test_an_answer_that_names_no_question_or_says_two_things_is_refused(body: dict[str, Any]) -> None:
    assert refused(legacy({"jsonrpc": "2.0", **body}))[:2] == (400, -32600)


def test_a_modern_client_answers_by_asking_again_and_not_by_a_response() -> None:
    body = {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert refused(legacy(body, b"2026-07-28"))[:2] == (400, -32600)
    assert refused(legacy(body, session=b""))[:2] == (400, -32600)


@pytest.mark.parametrize(
    "body",
    [
        b"1", b"null", b'"x"', b"", b"{", b"{}", b"\xff", b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"2.0","id":1,"method":1}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":null}',
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"a":1,"a":2}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"a":1,"\\u0061":2}}}',
    ],
)  # fmt: skip
def test_malformed_bodies_are_refused(body: bytes) -> None:
    status, code, _ = refused(legacy(body))
    assert status == 400
    assert code in (-32700, -32600, -32602)


# batches


def test_a_batch_exists_on_one_revision_only() -> None:
    members = [message(), message("notifications/initialized")]
    batch = legacy(members, b"2025-03-26")
    assert isinstance(batch, Batch)
    assert len(batch.members) == 2
    assert isinstance(legacy(members, b""), Batch)
    for version in (b"2025-06-18", b"2025-11-25", b"2026-07-28"):
        assert refused(legacy(members, version))[:2] == (400, -32600)


@pytest.mark.parametrize("count", [0, BATCH_MEMBERS_MAX + 1])
def test_the_number_of_members_is_bounded(count: int) -> None:
    assert refused(legacy([message()] * count, b"2025-03-26"))[:2] == (400, -32600)


def test_each_member_is_judged_for_itself() -> None:
    batch = legacy([message(), 1, [], message("initialize", 7), message(request_id=None)], b"2025-03-26")
    assert isinstance(batch, Batch)
    assert [isinstance(member, Request) for member in batch.members] == [True, False, False, False, False]
    assert refused(batch.members[3])[2]["id"] == 7


# the transport


@pytest.mark.parametrize("kind", [b"", b"text/plain", b"application/json-rpc", b"application/jsonx"])
def test_another_content_type_is_refused(kind: bytes) -> None:
    assert refused(accept({**PLAIN, b"content-type": kind}, b"{}"))[0] == 415


@pytest.mark.parametrize("kind", [b"application/json; charset=utf-8", b"APPLICATION/JSON", b"application/json ;x=1"])
def test_a_content_type_may_have_parameters(kind: bytes) -> None:
    headers = {**PLAIN, b"content-type": kind, b"mcp-session-id": b"s1"}
    assert isinstance(accept(headers, json.dumps(message()).encode()), Request)


@pytest.mark.parametrize(
    ("value", "served"), [(b"text/html", False), (b"", False), (b"*/*", True), (b"application/*;q=1", True)]
)
def test_accept_must_allow_json(value: bytes, served: bool) -> None:
    outcome = accept({**PLAIN, b"accept": value, b"mcp-session-id": b"s1"}, json.dumps(message()).encode())
    assert isinstance(outcome, Request) == served
