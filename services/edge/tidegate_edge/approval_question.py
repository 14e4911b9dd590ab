"""What a person is asked before a call goes on, in words, and what an answer to it means. Pure.

Everything that a caller or a server made up is shown so that it cannot pass for something else: cut, on lines of its
own, without characters that are invisible or turn the reading direction.
"""

import unicodedata
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from tidegate.events import Channel
from tidegate_edge.messages import careful, encode

KEY: Final = "approval"  # under which a modern client is asked
TEXT_CHARS_MAX: Final = 2_000  # of arguments
VALUE_CHARS_MAX: Final = 300  # of one text in them
NAME_CHARS_MAX: Final = 200
REASON_CHARS_MAX: Final = 200
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "approve": {
            "type": "boolean",
            "title": "Approve this call",
            "description": "Lets this one call pass, with these arguments, once.",
            "default": False,
        },
        "reason": {"type": "string", "title": "Reason", "maxLength": REASON_CHARS_MAX},
    },
    "required": ["approve"],
}
_DEEDS: Final = {
    "tools/call": "call the tool {target} of the server {server}",
    "prompts/get": "get the prompt {target} of the server {server}",
    "resources/read": "read the resource {target} of the server {server}",
    "resources/subscribe": "hear of changes of the resource {target} of the server {server}",
}
_OTHER_DEED: Final = "use {target} of the server {server}"
_PLAIN: Final = frozenset({" ", "\n"})
_HIDDEN: Final = ("C", "Zl", "Zp", "Zs")  # categories of what cannot be seen

Meaning = Literal["grant", "deny", "opened", "nothing"]


class Question(msgspec.Struct, frozen=True):
    """What is told of a call that waits for approval. `arguments` are JSON, as captured."""

    agent: str
    login: str
    method: str
    server: str
    target: str
    arguments: bytes
    why: str
    expires_us: int


class Answer(msgspec.Struct, frozen=True):
    """What a client brings back, in either era. What is not understood is no approval."""

    action: str = ""
    content: Any = None


_decode_answer: Final = careful(msgspec.json.Decoder(Answer).decode)
_decode_any: Final = careful(msgspec.json.Decoder().decode)


def text(asked: Question) -> str:
    """The question, whole, for whoever reads plain text."""
    deed = _DEEDS.get(asked.method, _OTHER_DEED).format(target=plain(asked.target), server=plain(asked.server))
    for_whom = f" for {plain(asked.login)}" if asked.login else ""
    return "\n".join(
        (
            f"{plain(asked.agent)} wants to {deed}{for_whom}.",
            "",
            f"Why you are asked: {asked.why}",
            "",
            "Arguments:",
            shown(asked.arguments),
            "",
            f"The question stands until {clock(asked.expires_us)}. If you approve, this one call passes, once.",
        )
    )


def form(asked: Question) -> dict[str, Any]:
    """Params of `elicitation/create`. Every revision that has it reads them: form is the mode that needs no name."""
    return {"message": text(asked), "requestedSchema": SCHEMA}


def page(asked: Question, url: str) -> dict[str, Any]:
    """Params of `elicitation/create` in URL mode."""
    deed = _DEEDS.get(asked.method, _OTHER_DEED).format(target=plain(asked.target), server=plain(asked.server))
    told = f"{plain(asked.agent)} wants to {deed}. {asked.why} Open the page to see its arguments, and to decide."
    return {"mode": "url", "message": told, "url": url}


def meant(raw: msgspec.Raw | bytes, by: Channel) -> tuple[Meaning, str]:
    """What an answer says, and the person's reason for it. A page that was opened says nothing yet."""
    try:
        answer = _decode_answer(bytes(raw))
    except msgspec.DecodeError:
        return "nothing", ""
    content = answer.content if isinstance(answer.content, dict) else {}
    reason = content.get("reason")
    told = plain(reason, REASON_CHARS_MAX) if isinstance(reason, str) else ""
    if answer.action == "decline":
        return "deny", told
    if answer.action != "accept":
        return "nothing", ""
    if by == "url":
        return "opened", ""
    approve = content.get("approve")
    return ("grant" if approve else "deny", told) if isinstance(approve, bool) else ("nothing", "")


def shown(arguments: bytes) -> str:
    """JSON for a person: indented, long texts cut, and cut as a whole; it says where."""
    try:
        value = _cut(_decode_any(arguments))
    except msgspec.DecodeError:
        return "(they cannot be shown)"
    pretty = visible(msgspec.json.format(encode(value)).decode())
    if len(pretty) <= TEXT_CHARS_MAX:
        return pretty
    return f"{pretty[:TEXT_CHARS_MAX]}\n… (cut here: {len(arguments)} bytes in all, of which you see the beginning)"


def plain(name: str, most: int = NAME_CHARS_MAX) -> str:
    """A name on one line."""
    told = visible(name).replace("\n", "\\n")
    return told if len(told) <= most else f"{told[: most - 1]}…"


def visible(told: str) -> str:
    """The same with every character that cannot be seen written as an escape."""
    if told.isascii() and told.isprintable():
        return told
    return "".join(one if _is_seen(one) else f"\\u{ord(one):04x}" for one in told)


def clock(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _is_seen(one: str) -> bool:
    return one in _PLAIN or not unicodedata.category(one).startswith(_HIDDEN)


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > VALUE_CHARS_MAX:
        return f"{value[:VALUE_CHARS_MAX]}… ({len(value) - VALUE_CHARS_MAX} characters more)"
    if isinstance(value, dict):
        return {key: _cut(one) for key, one in value.items()}
    return [_cut(one) for one in value] if isinstance(value, list) else value
