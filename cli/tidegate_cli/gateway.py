"""A small MCP client for one request at a time, over plain HTTP: what `tidegate call`, `tools` and the management
commands need, without the start-up cost of a full client.

MCP 2026-07-28 is stateless: one POST carries everything (basic/transports/streamable-http), so nothing is kept.
"""

import urllib.error
import urllib.request
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from tidegate import __version__
from tidegate.errors import CallerFault, ConfigFault, OurFault

PROTOCOL: Final = "2026-07-28"
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class NotServed(CallerFault):
    """The gateway answered with an error; `code` is the JSON-RPC code, `status` the HTTP one."""

    def __init__(self, sentence: str, *, status: int, rpc_code: int = 0) -> None:
        super().__init__(sentence, code="not-served")
        self.status = status
        self.rpc_code = rpc_code


class Gateway:
    """An MCP endpoint, asked on behalf of one token."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self._url = url
        self._token = token
        self._timeout_s = timeout_s

    def tools(self) -> list[dict[str, Any]]:
        """The tools that the token's principal may call. Raises NotServed, OurFault."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, Any] = {}
        while True:
            page = self._request("tools/list", cursor)
            found += page.get("tools", [])
            if not page.get("nextCursor"):
                return found
            cursor = {"cursor": page["nextCursor"]}

    def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The CallToolResult, denials included. Raises NotServed, OurFault."""
        return self._request("tools/call", {"name": tool, "arguments": arguments}, {"Mcp-Name": tool})

    def _request(self, method: str, params: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        meta = {
            "io.modelcontextprotocol/protocolVersion": PROTOCOL,
            "io.modelcontextprotocol/clientInfo": {"name": "tidegate-cli", "version": __version__},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        sent = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": PROTOCOL,
            "Mcp-Method": method,
            **(headers or {}),
        }
        status, answer = exchange("POST", self._url, sent, msgspec.json.encode(body), self._timeout_s)
        message = _decoded(answer, self._url, status)
        if isinstance(result := message.get("result"), dict):
            return result
        if not isinstance(error := message.get("error"), dict):
            raise _no_mcp(self._url, status)
        self._refused(status, error)

    def _refused(self, status: int, error: dict[str, Any]) -> NoReturn:
        said = str(error.get("message", "no reason given"))
        if status == 401:
            said = f"{said.rstrip('.')}. `tidegate token` makes another; is an old one in TIDEGATE_TOKEN?"
        raise NotServed(said, status=status, rpc_code=int(error.get("code", 0)))


def exchange(method: str, url: str, headers: dict[str, str], body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    """One HTTP exchange: (status, body), whatever the status. Raises OurFault where nobody answers.

    Proxies of the environment are obeyed, except towards loopback. Raises ConfigFault for what is no address.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigFault(f"'{url}' is not an http:// or https:// address")
    handlers = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOOPBACK else []
    request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 - http or https, from the settings
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as answer:
            return answer.status, answer.read(ANSWER_BYTES_MAX)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(ANSWER_BYTES_MAX)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise OurFault(
            f"nobody answers at {url} ({reason}); start `tidegate up`, or give the --config of the one that runs",
            code="not-reachable",
        ) from error


def _decoded(answer: bytes, url: str, status: int) -> dict[str, Any]:
    try:
        message = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        message = None
    if not isinstance(message, dict):
        raise _no_mcp(url, status)
    return message


def _no_mcp(url: str, status: int) -> OurFault:
    return OurFault(
        f"{url} answered HTTP {status} and nothing of MCP; the endpoint ends in /mcp: check --url and `public_url`"
    )
