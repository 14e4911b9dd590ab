"""The management API, asked from the shell. Counterpart: services/policy/tidegate_policy/api.py."""

import time
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from tidegate.errors import CallerFault
from tidegate.settings import Settings
from tidegate_cli.gateway import exchange
from tidegate_cli.trust_commands import mint

OWN_NAME = "tidegate-cli"  # whom the commands' own tokens name
TIMEOUT_S = 30.0
TOKEN_TTL_S = 120


class ManagementRefused(CallerFault):
    """The API said no; the sentence is its own. `problems` are those of a bundle."""

    def __init__(self, sentence: str, status: int, code: str, problems: list[dict[str, Any]]) -> None:
        super().__init__(sentence, code=code)
        self.status = status
        self.problems = problems


class Management:
    """The API at a base URL, asked by one administrator."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token

    def get(self, path: str, **query: Any) -> Any:
        """The decoded answer. Raises ManagementRefused, OurFault where nobody answers."""
        return self._ask("GET", f"{path}?{urlencode(query)}" if query else path, None, "")

    def read(self, path: str) -> bytes:
        """The answer as it came: where every digit of it matters."""
        return self._exchange("GET", path, None, "")

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Any:
        return self._ask("POST", path, body, content_type)

    def delete(self, path: str, **query: Any) -> None:
        self._ask("DELETE", f"{path}?{urlencode(query)}" if query else path, None, "")

    def _ask(self, method: str, path: str, body: bytes | None, content_type: str) -> Any:
        answer = self._exchange(method, path, body, content_type)
        try:
            return msgspec.json.decode(answer) if answer else None
        except msgspec.DecodeError:
            return None

    def _exchange(self, method: str, path: str, body: bytes | None, content_type: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        status, answer = exchange(method, f"{self._url}/api/v1{path}", headers, body, TIMEOUT_S)
        if status >= 400:
            try:
                told = msgspec.json.decode(answer)
            except msgspec.DecodeError:
                told = None
            document = told if isinstance(told, dict) else {}
            sentence = str(document.get("detail") or f"{self._url}/api/v1{path} answered HTTP {status}")
            raise ManagementRefused(
                sentence, status, str(document.get("code", "refused")), document.get("problems") or []
            )
        return answer


def open_management(settings: Settings, token: str = "", user: str = "", groups: tuple[str, ...] = ()) -> Management:
    """For who has this token, else for whom the local issuer vouches: an administrator, or the user that is named.

    Raises ConfigFault.
    """
    made = token or mint(
        settings,
        user or OWN_NAME,
        "tidegate-cli",
        groups if user else settings.management.admin_groups[:1],
        TOKEN_TTL_S,
        (f"{settings.url}/api/v1",),
        int(time.time()),
    )
    return Management(base_url(settings), made)


def base_url(settings: Settings) -> str:
    """In local mode the one address; in a cluster the policy service's own."""
    return settings.url if settings.is_local else f"http://{settings.services.policy.listen}"


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")
