"""accept never raises: any bytes under any headers are a request, a batch, or a refusal in good form."""

import json
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate_edge.accept import SINGLE_HEADERS, Batch, Request, Response, accept
from tidegate_edge.messages import Reply

VERSIONS = [b"2026-07-28", b"2025-11-25", b"2025-06-18", b"2025-03-26", b"2024-11-05", b"x", b""]
METHODS = ["initialize", "ping", "tools/call", "tools/list", "server/discover", "resources/read", "notifications/x"]
numbers = st.integers() | st.floats(allow_nan=True)
leaves = (
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from([10**30, "\ud800", "=?base64?eA==?="])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
meta = st.dictionaries(
    st.sampled_from(
        ["io.modelcontextprotocol/" + name for name in ("protocolVersion", "clientCapabilities", "clientInfo")]
    ),
    st.sampled_from(["2026-07-28", "2025-11-25", {}, None, 1]) | values,
)
params = st.fixed_dictionaries(
    {},
    optional={
        "_meta": meta | values,
        "name": st.sampled_from(["echo", "x"]) | values,
        "uri": values,
        "arguments": values,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | values,
        "id": st.integers() | st.text(max_size=5) | values,
        "method": st.sampled_from(METHODS) | values,
        "params": params | values,
        "result": values,
        "error": values,
    },
)
texts = (messages | st.lists(messages, max_size=4) | values).map(json.dumps).map(str.encode)
bodies = (
    st.binary(max_size=80)
    | texts
    | st.tuples(texts, st.binary(max_size=4), st.integers(0, 200)).map(
        lambda given: given[0][: given[2]] + given[1] + given[0][given[2] :]
    )
)
headers = st.fixed_dictionaries(
    {b"content-type": st.just(b"application/json")},
    optional={
        b"accept": st.sampled_from([b"*/*", b"application/json", b"text/event-stream", b"\xff;,"]),
        b"mcp-protocol-version": st.sampled_from(VERSIONS) | st.binary(max_size=6),
        b"mcp-method": st.sampled_from([name.encode() for name in METHODS]) | st.binary(max_size=6),
        b"mcp-name": st.sampled_from([b"echo", b"=?base64?eA==?=", b"=?base64?/w==?=", b"\xe9"])
        | st.binary(max_size=6),
        b"mcp-session-id": st.sampled_from([b"s1", b"\xff"]) | st.binary(max_size=6),
    },
)


@settings(max_examples=500, deadline=None)
@given(headers, bodies)
def test_any_bytes_become_a_request_a_batch_or_a_refusal(given_headers: dict[bytes, bytes], body: bytes) -> None:
    check(accept(given_headers, body))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(SINGLE_HEADERS)) | st.binary(max_size=8), st.binary(max_size=40)), bodies)
def test_any_headers_do(given_headers: dict[bytes, bytes], body: bytes) -> None:
    check(accept(given_headers, body))


def check(outcome: Any) -> None:
    if isinstance(outcome, Batch):
        for member in outcome.members:
            check(member)
    elif isinstance(outcome, Request):
        assert isinstance(outcome.method, str)
        assert outcome.id is None or type(outcome.id) in (int, str)
        assert json.loads(outcome.raw_params) == outcome.params or "NaN" in str(outcome.params)
    elif isinstance(outcome, Response):
        assert type(outcome.id) in (int, str)
        assert bool(outcome.result) != bool(outcome.error)
        json.loads(outcome.result or outcome.error)
    else:
        assert isinstance(outcome, Reply)
        if outcome.status == 202:
            assert outcome.body == b""
            return
        assert outcome.status in (400, 404, 406, 415)
        body = json.loads(outcome.body)
        assert body["jsonrpc"] == "2.0"
        assert set(body) == {"jsonrpc", "id", "error"}
        assert body["id"] is None or type(body["id"]) in (int, str)
        assert type(body["error"]["code"]) is int
        assert set(body["error"]["message"]) - set(string.whitespace)
