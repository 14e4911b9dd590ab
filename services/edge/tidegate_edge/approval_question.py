"""What a person is asked before a call goes on, in words, and what an answer to it means. Pure.

What is approved is shown whole, digit by digit, or not at all: nobody says yes to what was cut. And everything that a
caller or a server made up is shown so that it cannot pass for something else: on lines of its own, without characters
that are invisible or turn the reading direction.
"""

import json
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from tidegate.events import Channel
from tidegate.policy import instructing
from tidegate_edge.calls import TARGET_CHARS_MAX
from tidegate_edge.messages import careful, encode

KEY: Final = "approval"  # under which a modern client is asked
FORM_CHARS_MAX: Final = 4_000  # of arguments, as they are shown
PAGE_CHARS_MAX: Final = 50_000
SHOWN_KEPT_MAX: Final = 32  # arguments that are kept as they are shown: questions are put again
SIGNS_KEPT_MAX: Final = 4_096
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
_BLANK: Final = frozenset({"\u2800", "\ufe0f"})  # seen elsewhere, or with others

Meaning = Literal["grant", "deny", "opened", "nothing"]


class Question(msgspec.Struct, frozen=True):
    """What is told of a call that waits for approval. `arguments` are JSON, as they are sent."""

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


def text(asked: Question, most: int = FORM_CHARS_MAX) -> str | None:
    """The question, whole, for whoever reads plain text. None: what it is about is longer than `most` characters, or
    cannot be shown.
    """
    target, arguments = plain(asked.target, 8 * TARGET_CHARS_MAX), shown(asked.arguments, most)
    if arguments is None or len(asked.target) > TARGET_CHARS_MAX:
        return None
    deed = _DEEDS.get(asked.method, _OTHER_DEED).format(target=target, server=plain(asked.server))
    for_whom = f" for {plain(asked.login)}" if asked.login else ""
    return "\n".join(
        (
            f"{plain(asked.agent)} wants to {deed}{for_whom}.",
            "",
            f"Why you are asked: {asked.why}",
            "",
            "Arguments:",
            arguments,
            "",
            f"The question stands until {clock(asked.expires_us)}. If you approve, this one call passes, once.",
        )
    )


def form(asked: Question) -> dict[str, Any] | None:
    """Params of `elicitation/create`. Every revision that has it reads them: form is the mode that needs no name. None:
    there is more to see than a form shows.
    """
    message = text(asked)
    return None if message is None else {"message": message, "requestedSchema": SCHEMA}


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


@lru_cache(SHOWN_KEPT_MAX)
def shown(arguments: bytes, most: int) -> str | None:
    """JSON for a person: indented, numbers as they are written, whole. None: it takes more than so many characters, or
    is no JSON. No more is looked at than can be shown.
    """
    sheet = _Sheet(most)
    try:
        text = arguments.decode()
        if _least_shown(text) > most:
            return None
        sheet.write(json.loads(text, parse_int=_Digits, parse_float=_Digits), "\n")
    except (_TooLong, ValueError, RecursionError):
        return None
    return "".join(sheet.pieces)


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


def _least_shown(text: str) -> int:
    """That many characters of JSON are shown in any case: all but white space, and escapes as what they stand for."""
    return len(text) - sum(map(text.count, " \t\r\n")) - 6 * text.count("\\u") - text.count("\\/")


@lru_cache(SIGNS_KEPT_MAX)
def _is_seen(one: str) -> bool:
    if one in _PLAIN:
        return True
    if one in _BLANK or unicodedata.category(one).startswith(_HIDDEN):
        return False
    return instructing.visible(one) == one


class _Digits(str):
    """A number as it is written: what a reader makes of it is another matter."""


class _TooLong(Exception):
    """There is no room for all of it."""


class _Sheet:
    """JSON as a person reads it, up to a length. Raises _TooLong."""

    def __init__(self, most: int) -> None:
        self.pieces: list[str] = []
        self._left = most

    def write(self, value: Any, line: str) -> None:
        """`line` begins a new line where this value stands."""
        if isinstance(value, dict):
            self._many("{", "}", line, value.items())
        elif isinstance(value, list):
            self._many("[", "]", line, [("", one) for one in value])
        elif isinstance(value, _Digits):
            self._put(value)
        elif isinstance(value, str):
            self._quoted(value)
        else:
            self._put({None: "null", True: "true", False: "false"}[value])

    def _many(self, opens: str, closes: str, line: str, members: Iterable[tuple[str, Any]]) -> None:
        self._put(opens)
        inner, separator = f"{line}  ", ""
        for key, value in members:
            self._put(f"{separator}{inner}")
            separator = ","
            if opens == "{":
                self._quoted(key)
                self._put(": ")
            self.write(value, inner)
        self._put(f"{line}{closes}" if separator else closes)

    def _quoted(self, told: str) -> None:
        if len(told) > self._left:
            raise _TooLong
        self._put(visible(encode(told).decode()))

    def _put(self, piece: str) -> None:
        self._left -= len(piece)
        if self._left < 0:
            raise _TooLong
        self.pieces.append(piece)
