"""Masking: what a matched value is replaced by, in a text and in JSON bytes. Pure. `scanner.py` finds the spans.

Spans are byte offsets into UTF-8 and may cut a character, as patterns work on bytes: they are widened to whole ones.
Mask texts hold nothing that JSON would escape, so they go into a string token as they are.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """A matched stretch of bytes and the id of the pattern."""

    start: int
    end: int
    rule: str


class Edit(NamedTuple):
    """Bytes `start` to `end` become `text`."""

    start: int
    end: int
    text: bytes


def mask_of(rule: str) -> bytes:
    """What stands where the pattern `rule` matched."""
    return b"[masked:%b]" % rule.encode()


def merged(text: bytes, spans: Iterable[Span]) -> list[Span]:
    """Whole characters, in order, without overlap. Where spans overlap the first (then longest) one gives its name."""
    ordered = sorted((_widened(text, span) for span in spans), key=lambda span: (span.start, -span.end))
    result: list[Span] = []
    for span in ordered:
        if result and span.start < result[-1].end:
            last = result[-1]
            result[-1] = last._replace(end=max(last.end, span.end))
        else:
            result.append(span)
    return result


def masked_text(text: bytes, spans: Iterable[Span]) -> bytes:
    """The text with each span (as from `merged`) replaced."""
    return edited(text, [Edit(span.start, span.end, mask_of(span.rule)) for span in spans])


def edited(raw: bytes, edits: Iterable[Edit]) -> bytes:
    """The bytes with the edits applied; they are in order and do not overlap."""
    parts: list[bytes] = []
    position = 0
    for edit in edits:
        parts += (raw[position : edit.start], edit.text)
        position = edit.end
    parts.append(raw[position:])
    return b"".join(parts)


def _widened(text: bytes, span: Span) -> Span:
    start, end, rule = span
    while start > 0 and text[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(text) and text[end] & 0xC0 == 0x80:
        end += 1
    return Span(start, end, rule)
