"""Scanning of arguments and results: patterns over every decoded string, key and number of JSON bytes.

The common case, nothing found, is one pass: over the bytes as they are, or over the decoded values where they hold an
escape. The first pass may say too much, never too little: what it reports is settled token by token, on decoded text.
Masking replaces tokens in the original bytes, so what is not masked stays byte for byte. Counterpart: `rules.py`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from tidegate.events import Direction, Finding
from tidegate.inspection.engine import MATCHES_MAX, Database, Expression, Hit
from tidegate.inspection.masking import Edit, Span, edited, mask_of, masked_text, merged
from tidegate.inspection.patterns import ACTIONS, SEVERITIES, InspectionRules, Pattern
from tidegate.inspection.validators import VALIDATORS, Validator
from tidegate.limits import FINDINGS_PER_CALL_MAX

MASKING_PASSES_MAX: Final = 4
TOKENS_UNSIFTED_MAX: Final = 24  # with fewer tokens it is cheaper to look at each than to find out which
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*', re.DOTALL)
_COLON = re.compile(rb"\s*:")


class _Fraction(str):
    """A number with a fraction or an exponent, as it is written."""


_decode_any = msgspec.json.Decoder(float_hook=_Fraction).decode
_decode_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class Scan(msgspec.Struct, frozen=True, gc=False):
    """What a scan found. Compare with `EMPTY` by identity for the common case."""

    findings: tuple[Finding, ...] = ()
    blocked: Finding | None = None  # the first of `findings` whose action is block: the call must not go on
    masked: bytes | None = None  # the JSON to forward instead; what blocked is masked in it, too
    masks: int = 0  # places masked in `masked`
    recorded: bytes | None = None  # the JSON for the event: what only alerts is masked too, unless `record: keep`


EMPTY: Final = Scan()


class Scanner:
    """Compiled rules for both directions. Immutable; serves one thread at a time."""

    def __init__(self, rules: InspectionRules) -> None:
        self._arguments = _Side(rules, "arguments")
        self._result = _Side(rules, "result")
        recorded = _for_records(rules)
        self._records = {"arguments": _Side(recorded, "arguments"), "result": _Side(recorded, "result")}

    def scan(self, raw: bytes, direction: Direction) -> Scan:
        """Inspect JSON bytes. Never raises. A secret split over two strings is not found."""
        side = self._arguments if direction == "arguments" else self._result
        scan = side.scan(raw)
        if scan is EMPTY:
            return EMPTY
        if any(finding.action == "alert" for finding in scan.findings):
            return msgspec.structs.replace(scan, recorded=self._records[direction].scan(raw).masked)
        return msgspec.structs.replace(scan, recorded=scan.masked)

    def scan_text(self, text: str, direction: Direction = "result") -> Scan:
        """Inspect plain text (progress, log messages); `masked` is UTF-8 text then, not JSON."""
        side = self._arguments if direction == "arguments" else self._result
        return side.scan_text(text.encode("utf-8", "replace"))


class _Tally:
    """What one scan has found so far."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.masks = 0
        self.matches_left = MATCHES_MAX

    def add(self, index: int, count: int) -> None:
        self.counts[index] = self.counts.get(index, 0) + count


class _Side:
    """One direction. All patterns are compiled, those it does not look at too, so that all sides share the work."""

    def __init__(self, rules: InspectionRules, direction: Direction) -> None:
        self._direction: Direction = direction
        chosen = rules.patterns
        self._patterns = chosen
        self._actions = [_action(pattern, direction) for pattern in chosen]
        self._looks = [action != "allow" for action in self._actions]
        self._hides = [action in ("mask", "block") for action in self._actions]
        self._validators: list[Validator | None] = [VALIDATORS.get(pattern.validator) for pattern in chosen]
        self._utf8_only = any(not pattern.pattern.isascii() for pattern in chosen)
        expressions = [Expression(pattern.pattern, pattern.ignore_case, spans=True) for pattern in chosen]
        self._screen = Database(expressions, single=True) if any(self._looks) else None
        self._locate = Database(expressions, single=False) if any(self._looks) else None

    def scan(self, raw: bytes) -> Scan:
        if self._screen is None:
            return EMPTY
        if self._utf8_only:  # the engine's UTF-8 mode is undefined on anything else
            raw = _as_utf8(raw)
        values = _values_of(raw) if b"\\" in raw else raw
        if values is not None and not self._which(values):
            return EMPTY
        return self._settle(raw)

    def scan_text(self, text: bytes) -> Scan:
        if self._screen is None or not self._which(text):
            return EMPTY
        tally = _Tally()
        spans = self._judge(text, tally)
        if not tally.counts:
            return EMPTY
        tally.masks = len(spans)
        return self._outcome(tally, self._mask(text, spans) if spans else None)

    def _which(self, text: bytes) -> list[int]:
        """The patterns looked at that match somewhere."""
        assert self._screen is not None
        found = self._screen.which(text)
        return [index for index in found if self._looks[index]] if found else found

    def _settle(self, raw: bytes) -> Scan:
        tally = _Tally()
        edits: list[Edit] = []
        keys: set[bytes] = set()
        for start, end, text in self._candidates(raw):
            spans = self._judge(text, tally)
            if spans:
                tally.masks += len(spans)
                token = self._masked_token(raw, start, end, text, spans)
                if _COLON.match(raw, end):
                    token = _unique_key(token, raw, keys)
                edits.append(Edit(start, end, token))
        if not tally.counts:
            return EMPTY
        return self._outcome(tally, edited(raw, edits) if edits else None)

    def _candidates(self, raw: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Tokens to look at one by one: those with escapes, and those in which a match over the whole bytes ended."""
        tokens = [token.span() for token in _TOKEN.finditer(raw)]
        ends = self._match_ends(raw) if len(tokens) > TOKENS_UNSIFTED_MAX else None
        next_end = 0
        for start, end in tokens:
            escaped = raw.find(b"\\", start, end) >= 0
            if ends is not None and not escaped:
                while ends[next_end] <= start:
                    next_end += 1
                if ends[next_end] > end:
                    continue
            yield start, end, _text_of(raw[start:end], escaped)

    def _match_ends(self, raw: bytes) -> list[int] | None:
        """Where matches over the whole bytes end, with a stop behind the last; None if they are too many to list."""
        assert self._locate is not None
        hits = self._locate.hits(raw)
        return None if len(hits) >= MATCHES_MAX else [*sorted({hit.end for hit in hits}), len(raw) + 1]

    def _judge(self, text: bytes, tally: _Tally) -> list[Span]:
        """Count what matches in one decoded text; the spans, merged, that must not be shown."""
        assert self._locate is not None
        hits = self._locate.hits(text, tally.matches_left)
        if len(hits) >= tally.matches_left:
            tally.matches_left = 0
            return self._judge_coarsely(text, tally)
        if not hits:
            return []
        tally.matches_left -= len(hits)
        hidden: list[Span] = []
        for index, spans in self._valid_spans(text, (hit for hit in hits if self._looks[hit.number])).items():
            found = merged(text, spans)
            tally.add(index, len(found))
            if self._hides[index]:
                hidden += found
        return merged(text, hidden)

    def _judge_coarsely(self, text: bytes, tally: _Tally) -> list[Span]:
        """Past the bound of matches: no validators, and a text in which anything must be hidden is hidden whole."""
        indexes = sorted(self._which(text))
        for index in indexes:
            tally.add(index, 1)
        return [Span(0, len(text), self._patterns[index].id) for index in indexes if self._hides[index]][:1]

    def _valid_spans(self, text: bytes, hits: Iterable[Hit]) -> dict[int, list[Span]]:
        """By pattern: the longest match from each start that its validator accepts."""
        spans: dict[int, dict[int, Span]] = {}
        for index, start, end in reversed(list(hits)):
            of_pattern = spans.setdefault(index, {})
            if start in of_pattern:
                continue
            validator = self._validators[index]
            if validator is None or validator(text[start:end]):
                of_pattern[start] = Span(start, end, self._patterns[index].id)
        return {index: list(of_pattern.values()) for index, of_pattern in spans.items() if of_pattern}

    def _masked_token(self, raw: bytes, start: int, end: int, text: bytes, spans: list[Span]) -> bytes:
        if raw[start] != 0x22:  # a number becomes a string
            return b'"%b"' % mask_of(spans[0].rule)
        shown = self._mask(text, spans)
        if raw.find(b"\\", start, end) < 0:
            return b'"%b"' % shown
        return _encode(shown.decode("utf-8", "replace"))

    def _mask(self, text: bytes, spans: list[Span]) -> bytes:
        """Masked until nothing is left to mask: a replacement may give its neighbour a word boundary and so a match."""
        rule = spans[0].rule
        for _ in range(MASKING_PASSES_MAX):
            text = masked_text(text, spans)
            left = self._which(text)
            if not any(self._hides[index] for index in left):
                return text
            spans = self._judge(text, _Tally())
            if not spans:
                return text
        return mask_of(rule)

    def _outcome(self, tally: _Tally, masked: bytes | None) -> Scan:
        findings = [
            Finding(
                rule=self._patterns[index].id,
                severity=self._patterns[index].severity,
                action=self._actions[index],
                direction=self._direction,
                count=count,
            )
            for index, count in tally.counts.items()
        ]
        findings.sort(
            key=lambda finding: (-ACTIONS.index(finding.action), -SEVERITIES.index(finding.severity), finding.rule)
        )
        blocked = findings[0] if findings[0].action == "block" else None
        return Scan(tuple(findings[:FINDINGS_PER_CALL_MAX]), blocked, masked, tally.masks)


def _for_records(rules: InspectionRules) -> InspectionRules:
    """The same patterns, hiding what an event must not hold."""
    return InspectionRules(
        tuple(
            msgspec.structs.replace(
                pattern, arguments=_record_action(pattern, "arguments"), result=_record_action(pattern, "result")
            )
            for pattern in rules.patterns
        )
    )


def _record_action(pattern: Pattern, direction: Direction) -> Any:
    action = _action(pattern, direction)
    if action == "alert":
        return "mask" if pattern.record == "mask" else "allow"
    return action


def _action(pattern: Pattern, direction: Direction) -> Any:
    return pattern.arguments if direction == "arguments" else pattern.result


def _as_utf8(raw: bytes) -> bytes:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace").encode()
    return raw


def _values_of(raw: bytes) -> bytes | None:
    """All strings and numbers decoded, NUL between them; None where that could lose one, as with a duplicate key."""
    try:
        return _walked(raw, _decode_any(raw))
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        return None


def _walked(raw: bytes, document: Any) -> bytes | None:
    stack: list[Any] = [document]
    strings: list[str] = []
    numbers: list[str] = []
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind is str:
            strings.append(node)
        elif kind is dict:
            strings.extend(node)
            stack.extend(node.values())
        elif kind is list:
            stack.extend(node)
        elif kind is int or kind is _Fraction:
            numbers.append(str(node))
    delimiters = 2 * len(strings)
    strings += numbers
    values = "\0".join(strings).encode("utf-8", "replace")
    quoted = values.count(b'"')
    if raw.count(b'"') != delimiters + quoted or (
        quoted and b"u0022" in raw
    ):  # each quote is a delimiter or a character
        return None
    return values


def _text_of(token: bytes, escaped: bool) -> bytes:
    """What a string token says, or a number token as it is written."""
    if not escaped:
        return token[1:-1] if token[0] == 0x22 else token
    try:
        return _decode_string(token).encode()
    except (msgspec.DecodeError, UnicodeEncodeError):
        return _text_of_odd(token)


def _text_of_odd(token: bytes) -> bytes:
    """A token that msgspec refuses: a lone surrogate, or no JSON at all."""
    try:
        return str(json.loads(token.decode("utf-8", "replace"), strict=False)).encode("utf-8", "replace")
    except ValueError:
        return token[1:-1].decode("utf-8", "replace").encode()


def _unique_key(token: bytes, raw: bytes, keys: set[bytes]) -> bytes:
    """Two keys that are masked alike must stay two keys."""
    unique, number = token, 1
    while unique in keys or unique in raw:
        number += 1
        unique = b'%b (%d)"' % (token[:-1], number)
    keys.add(unique)
    return unique
