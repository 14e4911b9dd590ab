"""An MCP client for Locust: streamable HTTP over gevent, one class per era, every answer judged by what was expected.

Rule: an expected denial is a success, an unexpected permission a failure. Counterpart: `locustfile.py` has the users,
the options and the thresholds. Sources: MCP 2025-11-25 basic/transports, 2026-07-28 basic/transports/streamable-http.
"""

import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from locust.contrib.fasthttp import FastHttpSession, ResponseContextManager
from locust.exception import CatchResponseError

MODERN = "2026-07-28"
LEGACY = "2025-11-25"
DECISION = "tidegate/decision"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "loadtest", "version": "1"},
}
ANSWER_BYTES_MAX = 16 * 1024 * 1024

Expected = Literal["ok", "denied"]


class Unexpected(Exception):
    """An answer is not what it should be; the sentence groups failures in Locust's table, so it holds no ids."""


class McpClient:
    """One agent's connection to an endpoint. Subclasses speak one era each."""

    era = ""

    def __init__(self, http: FastHttpSession, path: str, token: str) -> None:
        self._http = http
        self._path = path
        self._numbers = itertools.count(1)
        self._headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def open(self) -> None:
        """Whatever the era needs before the first request."""

    def close(self) -> None:
        """Whatever the era owes after the last one."""

    def list_tools(self) -> list[str]:
        """The names of all tools, all pages. [] when a page failed (Locust has counted it)."""
        names: list[str] = []
        cursor: dict[str, Any] | None = {}
        while cursor is not None:
            result = self.request("tools/list", cursor)
            if result is None:
                return []
            names += [str(tool["name"]) for tool in result.get("tools", [])]
            cursor = {"cursor": result["nextCursor"]} if "nextCursor" in result else None
        return names

    def call(self, tool: str, arguments: dict[str, Any], *, expected: Expected = "ok") -> None:
        """One tools/call with a fresh `nonce`, judged."""
        arguments = {**arguments, "nonce": uuid.uuid4().hex}
        label = "tools/call" if expected == "ok" else "tools/call, denied"
        self.request("tools/call", {"name": tool, "arguments": arguments}, label=label, expected=expected)

    def request(
        self, method: str, params: dict[str, Any], *, label: str = "", expected: Expected = "ok"
    ) -> dict[str, Any] | None:
        """The result, or None where the answer was not the expected one (Locust has counted it)."""
        number = next(self._numbers)
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": self._params(params)}
        headers = self._headers | self._routing(method, params)
        name = f"{self.era} {label or method}"
        with self._http.post(self._path, json=body, headers=headers, name=name, catch_response=True) as response:
            try:
                result = judged(response, number, expected)
            except Unexpected as fault:
                response.failure(CatchResponseError(str(fault)))
                self._unexpected(response)
                return None
            self._noted(response)
            response.success()
            return result

    def _params(self, params: dict[str, Any]) -> dict[str, Any]:
        return params

    def _routing(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        raise NotImplementedError

    def _noted(self, response: ResponseContextManager) -> None: ...

    def _unexpected(self, response: ResponseContextManager) -> None: ...


class ModernClient(McpClient):
    """2026-07-28: no session; every request says who speaks and where it goes."""

    era = "modern"

    def open(self) -> None:
        self.request("server/discover", {})

    def _params(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**params, "_meta": ENVELOPE}

    def _routing(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
        return headers | ({"Mcp-Name": params["name"]} if method == "tools/call" else {})


class LegacyClient(McpClient):
    """2025-11-25: initialize, a session id on every request, DELETE at the end; a lost session (404) is opened anew."""

    era = "legacy"

    def __init__(self, http: FastHttpSession, path: str, token: str) -> None:
        super().__init__(http, path, token)
        self._session: dict[str, str] = {}

    def open(self) -> None:
        self._session = {}
        client = {"name": "loadtest", "version": "1"}
        opened = self.request("initialize", {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": client})
        if opened is None:
            return
        self._session["MCP-Protocol-Version"] = str(opened["protocolVersion"])
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        headers = self._headers | self._session
        self._http.post(self._path, json=note, headers=headers, name="legacy notifications/initialized")

    def close(self) -> None:
        if "Mcp-Session-Id" in self._session:
            headers = self._headers | self._session
            self._http.delete(self._path, headers=headers, name="legacy DELETE")
            self._session = {}

    def _routing(self, method: str, params: dict[str, Any]) -> dict[str, str]:
        return self._session

    def _noted(self, response: ResponseContextManager) -> None:
        if session := header(response, "Mcp-Session-Id"):
            self._session["Mcp-Session-Id"] = session

    def _unexpected(self, response: ResponseContextManager) -> None:
        if response.status_code == 404 and "Mcp-Session-Id" in self._session:
            self.open()


def judged(response: ResponseContextManager, number: int, expected: Expected) -> dict[str, Any]:
    """The result of an answer that is the expected one. Raises Unexpected."""
    if response.status_code != 200:
        raise Unexpected(f"HTTP {response.status_code}")
    message = message_of(response, number)
    if "error" in message:
        raise Unexpected(f"JSON-RPC error {message['error'].get('code')}")
    result = message.get("result")
    if not isinstance(result, dict):
        raise Unexpected("no result")
    decision = result.get("_meta", {}).get(DECISION, {})
    if expected == "denied":
        if not result.get("isError"):
            raise Unexpected("a call that should be denied was allowed")
        if decision.get("decision") not in ("deny", "ask"):
            raise Unexpected("a call that should be denied failed for another reason")
    elif result.get("isError"):
        raise Unexpected(f"denied: {decision['reason']}" if decision else "the tool failed")
    return result


def message_of(response: ResponseContextManager, number: int) -> dict[str, Any]:
    """The JSON-RPC answer to request `number`, from a JSON body or an event stream. Raises Unexpected."""
    content = response.content or b""
    if len(content) > ANSWER_BYTES_MAX:
        raise Unexpected("the answer is too large")
    kind = header(response, "Content-Type").partition(";")[0]
    texts = event_data(content.decode("utf-8", "replace")) if kind == "text/event-stream" else iter([content.decode()])
    try:
        for text in texts:
            message = json.loads(text)
            if isinstance(message, dict) and message.get("id") == number:
                return message
    except ValueError:
        raise Unexpected("the answer is not JSON") from None
    raise Unexpected("the answer has another id")


def header(response: ResponseContextManager, name: str) -> str:
    """A header's value; "" where it is absent."""
    return str(response.headers.get(name, "")) if response.headers else ""


def event_data(text: str) -> Iterator[str]:
    """The data of each event of a stream that has some (HTML Living Standard §9.2)."""
    for event in text.replace("\r\n", "\n").split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
        if data := "\n".join(lines):
            yield data
