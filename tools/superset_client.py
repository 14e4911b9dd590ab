"""As much of Superset's REST API as a check needs: sign in, import, ask a chart. Blocking; on loopback alone."""

import json
import secrets
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, Self
from urllib.parse import quote

from tools.superset_export import DATABASE_FILE, TOP, Yaml, query_of

ADMIN: Final = "admin"
TIMEOUT_S: Final = 60


def is_healthy(port: int) -> bool:
    try:
        return exchange(port, "GET", "/health", {})[0] == 200
    except (OSError, HTTPException):
        return False


def exchange(
    port: int, method: str, path: str, headers: dict[str, str], content: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body. Raises OSError or HTTPException where nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class SupersetClient:
    """Signed in. Methods raise RuntimeError with Superset's words where they do not return them."""

    def __init__(self, port: int, token: str = "") -> None:
        self._port = port
        self._token = token

    @classmethod
    def sign_in(cls, port: int, password: str) -> Self:
        who = {"username": ADMIN, "password": password, "provider": "db"}
        return cls(port, cls(port)._json("POST", "/security/login", who)["access_token"])

    def import_dashboards(self, packed: bytes, password: str) -> None:
        """With the password of the database account, which the zip does not hold."""
        fields = {"passwords": json.dumps({DATABASE_FILE: password}), "overwrite": "true"}
        content, kind = _form(fields, f"{TOP}.zip", packed)
        self._exchange("POST", "/dashboard/import/", content, kind)

    def charts_of(self, slug: str) -> dict[str, int]:
        """The charts that a dashboard shows: name → id."""
        charts = self._json("GET", f"/dashboard/{quote(slug)}/charts")["result"]
        return {one["slice_name"]: one["id"] for one in charts}

    def data_of(self, number: int) -> tuple[int, str]:
        """Rows of a chart as it was saved, or Superset's words."""
        return self._rows("GET", f"/chart/{number}/data/?force=true", None)

    def data_with(self, chart: Yaml, dataset: Yaml, chosen: tuple[str, str]) -> tuple[int, str]:
        """Rows of a chart while a filter of its dashboard is set to one value."""
        query = query_of(chart, dataset)
        query["filters"].append({"col": chosen[0], "op": "IN", "val": [chosen[1]]})
        source = {"id": self._dataset(dataset["table_name"]), "type": "table"}
        return self._rows("POST", "/chart/data", {"datasource": source, "force": True, "queries": [query]})

    def _dataset(self, name: str) -> int:
        asked = quote(f"(filters:!((col:table_name,opr:eq,value:{name})))")
        (found,) = self._json("GET", f"/dataset/?q={asked}")["result"]
        return int(found["id"])

    def _rows(self, method: str, path: str, body: Any) -> tuple[int, str]:
        try:
            (result,) = self._json(method, path, body)["result"]
        except RuntimeError as fault:
            return 0, str(fault)
        return int(result["rowcount"]), result.get("error") or ""

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        content = json.dumps(body).encode() if body is not None else None
        return json.loads(self._exchange(method, path, content, "application/json"))

    def _exchange(self, method: str, path: str, content: bytes | None, kind: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if content is not None:
            headers["Content-Type"] = kind
        status, body = exchange(self._port, method, f"/api/v1{path}", headers, content)
        if status != 200:
            words = body.decode(errors="replace")[:500]
            raise RuntimeError(f"{method} {path.partition('?')[0]}: {status} {words}")
        return body


def _form(fields: dict[str, str], name: str, file: bytes) -> tuple[bytes, str]:
    """A multipart body with one file, and its content type (RFC 7578)."""
    edge = secrets.token_hex(16)
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="formData"; filename="{name}"\r\n'
    parts += [f"{head}Content-Type: application/zip\r\n\r\n".encode(), file, f"\r\n--{edge}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={edge}"
