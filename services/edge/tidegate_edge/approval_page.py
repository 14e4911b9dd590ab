"""The page on which a requester approves a call, for clients that can open pages and show no forms, and for what is too
long for a form: it shows all of it, or is not offered.

Its address carries everything, sealed, so that any edge serves it; whoever has the address may answer, which is no more
than the client itself could. It is asked for only where the rule lets the requester approve. No scripts, no cookies.
"""

import html
import zlib
from typing import Final
from urllib.parse import parse_qs

import msgspec
from fastapi import APIRouter, Request, Response

from tidegate.errors import LogUnavailable
from tidegate.ids import now_us
from tidegate.policy.approvals import ANYBODY, Approval, read_state, state_value
from tidegate_edge import approval_question, strict_json
from tidegate_edge.approval_question import PAGE_CHARS_MAX, REASON_CHARS_MAX, Question
from tidegate_edge.approval_records import decide
from tidegate_edge.edge import Edge

PATH: Final = "/approve"
PURPOSE: Final = "approval-page"
BODY_BYTES_MAX: Final = 4_096
URL_CHARS_MAX: Final = 8_000  # what a proxy passes on by default
CONTENT_BYTES_MAX: Final = 1024 * 1024  # of what an address carries, unpacked
PACKED_FROM_BYTES: Final = 2_000
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STATES: Final = {
    "granted": "This call is approved. Go back to your client.",
    "consumed": "This call was approved, and made.",
    "denied": "This call was denied. It was not made.",
    "expired": "Nobody decided in time. The call was not made.",
}
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f3f3f3;color:#111;padding:1rem}"
    "button,input{font:inherit;padding:.5rem 1rem;margin:.25rem .5rem .25rem 0}"
)


class _Sealed(msgspec.Struct, frozen=True):
    """What the address carries. An edge of the next version must read it."""

    approval: msgspec.Raw
    told: str
    v: int = 1


_decode: Final = msgspec.json.Decoder(_Sealed).decode


def url_of(edge: Edge, approval: Approval, asked: Question) -> str:
    """Raises ValueError: too much to carry, or to show."""
    is_dense = len(zlib.compress(asked.arguments, 1)) > URL_CHARS_MAX
    told = None if is_dense else approval_question.text(asked, PAGE_CHARS_MAX)
    if told is None:
        raise ValueError("the arguments are more than a page shows, or than an address carries")
    content = msgspec.json.encode(_Sealed(msgspec.Raw(state_value(approval)), told))
    if len(content) >= PACKED_FROM_BYTES:
        content = zlib.compress(content)
    url = f"{edge.settings.url}{PATH}/{edge.sealer.seal(PURPOSE, content, b'')}"
    if len(url) > URL_CHARS_MAX:
        raise ValueError(f"an address has {URL_CHARS_MAX} characters at most, not {len(url)}")
    return url


def approval_routes(edge: Edge) -> APIRouter:
    """`GET` shows the question, `POST` answers it."""
    router = APIRouter(include_in_schema=False)

    @router.get(PATH + "/{token}")
    async def show(token: str) -> Response:
        opened = _opened(edge, token)
        return _page(200, *_shown(*opened)) if opened else _unknown()

    @router.post(PATH + "/{token}")
    async def answer(token: str, request: Request) -> Response:
        opened = _opened(edge, token)
        if opened is None:
            return _unknown()
        given = await _form(request)
        if given is None or given.get("decision") not in ("approve", "deny"):
            return _page(400, "Not understood", "<p>Open the page again and press one of its buttons.</p>")
        return await _answered(edge, *opened, yes=given["decision"] == "approve", reason=given.get("reason", ""))

    return router


async def _answered(edge: Edge, approval: Approval, told: str, *, yes: bool, reason: str) -> Response:
    if approval.state != "pending" or not approval.is_open(now_us()):
        return _page(409, *_shown(approval, told))
    ruling = edge.rulings.get(approval.tenant)
    if ruling is None:
        return _page(503, "Not now", "<p>This edge is not ready yet. Try again shortly.</p>")
    clean = ruling.told(approval_question.plain(reason, REASON_CHARS_MAX), "arguments")[:REASON_CHARS_MAX]
    try:
        decided = await decide(edge, approval, "url", yes, clean, "spool")
    except LogUnavailable:
        return _page(503, "Not now", "<p>Your answer could not be recorded, so it does not count. Try again.</p>")
    return _page(200, *_shown(decided, told))


def _opened(edge: Edge, token: str) -> tuple[Approval, str] | None:
    """The approval as this edge knows it now, and the question. None: not an address of ours."""
    content = edge.sealer.unseal(PURPOSE, token, b"")
    if content is None:
        return None
    try:
        sealed = _decode(content if content.startswith(b"{") else _unpacked(content))
        approval = read_state(bytes(sealed.approval))
    except msgspec.DecodeError:
        return None
    if approval.approver != ANYBODY:
        return None
    edge.approvals.learn(approval)
    return edge.approvals.of(approval.tenant).get(approval.approval_id) or approval, sealed.told


def _unpacked(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, CONTENT_BYTES_MAX)
    except zlib.error as error:
        raise msgspec.DecodeError(str(error)) from error


async def _form(request: Request) -> dict[str, str] | None:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            return None
    try:
        fields = parse_qs(body.decode(), max_num_fields=8)
    except (ValueError, UnicodeDecodeError):
        return None
    return {key: values[0] for key, values in fields.items() if strict_json.is_strict(msgspec.json.encode(values[0]))}


def _shown(approval: Approval, told: str) -> tuple[str, str]:
    question = f"<pre>{html.escape(told)}</pre>"
    state = approval.state if approval.expires_us > now_us() or approval.state != "pending" else "expired"
    if state != "pending":
        return "Decided", f"<p><strong>{_STATES[state]}</strong></p>{question}"
    return "Approve this call?", (
        f"{question}<form method=post>"
        f"<p><label>Reason <input name=reason maxlength={REASON_CHARS_MAX} autocomplete=off></label></p>"
        "<button name=decision value=deny>Deny</button>"
        "<button name=decision value=approve>Approve this one call</button></form>"
    )


def _unknown() -> Response:
    return _page(404, "No such question", "<p>This address is wrong, or too old.</p>")


def _page(status: int, title: str, body: str) -> Response:
    content = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style><h1>{title}</h1>{body}</html>"
    )
    return Response(content, status, HEADERS, "text/html")
