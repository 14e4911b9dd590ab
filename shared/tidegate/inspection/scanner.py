"""Scanning of arguments and results: patterns over every decoded string, key and number of JSON bytes.

The common case, nothing found, is one pass: over the bytes as they are, or over the decoded values where they hold an
escape. The first pass may say too much, never too little: what it reports is settled token by token, on decoded text.
Masking replaces tokens in the original bytes, so what is not masked stays byte for byte. What is large is looked at
piece by piece (no token is in two), in turns with other work where `scanning` is driven so; long texts are for a thread
then, for the engine holds no lock. Counterpart: `rules.py`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final

import msgspec

from tidegate.events import Direction, Finding
from tidegate.inspection.engine import MATCHES_MAX, Database, Expression, Hit
from tidegate.inspection.masking import Edit, Span, edited, mask_of, masked_text, merged
from tidegate.inspection.patterns import ACTIONS, SEVERITIES, InspectionRules, Pattern
from tidegate.inspection.validators import VALIDATORS, Validator
from tidegate.json_pieces import SIZES, Piece, Sizes, TooDeep, parts_of_string, pieces, without_long
from tidegate.limits import FINDINGS_PER_CALL_MAX
from tidegate.turns import Turns, at_once

HITS_AT_ONCE: Final = 500
MASKING_PASSES_MAX: Final = 4
TOKENS_AT_ONCE: Final = 100
TOKENS_UNSIFTED_MAX: Final = 24  # with fewer tokens it is cheaper to look at each than to find out which
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*', re.DOTALL)
_COLON = re.compile(rb"\s*:")
_NUMBERED = re.compile(rb'\((\d{1,9})\)"')


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

    def __init__(self, rules: InspectionRules, sizes: Sizes = SIZES) -> None:
        self._whole = sizes.whole
        self._arguments = _Side(rules, "arguments", sizes)
        self._result = _Side(rules, "result", sizes)
        recorded = _for_records(rules)
        self._records: dict[Direction, _Side] = {
            "arguments": _Side(recorded, "arguments", sizes),
            "result": _Side(recorded, "result", sizes),
        }

    def scan(self, raw: bytes, direction: Direction) -> Scan:
        """Inspect JSON bytes. Never raises. A secret split over two strings is not found."""
        return EMPTY if self.is_clean(raw, direction) else at_once(self.scanning(raw, direction))

    def is_clean(self, raw: bytes, direction: Direction) -> bool:
        """Whether one look finds nothing, as in most of what is small. False where a second look is due."""
        side = self._arguments if direction == "arguments" else self._result
        return len(raw) <= self._whole and side.is_clean(raw)

    def scanning(self, raw: bytes, direction: Direction) -> Turns[Scan]:
        """As `scan`, in turns."""
        side = self._arguments if direction == "arguments" else self._result
        scan = yield from side.scanning(raw)
        if scan is EMPTY:
            return EMPTY
        if any(finding.action == "alert" for finding in scan.findings):
            recorded = yield from self._records[direction].scanning(raw)
            return msgspec.structs.replace(scan, recorded=recorded.masked)
        return msgspec.structs.replace(scan, recorded=scan.masked)

    def suspecting(self, raw: bytes, direction: Direction) -> Turns[bool]:
        """Whether `scan` may find anything, in turns; not what. May say too much, never too little."""
        side = self._arguments if direction == "arguments" else self._result
        if len(raw) <= self._whole:
            return not side.is_clean(raw)
        return (yield from side.suspecting(raw))

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

    def __init__(self, rules: InspectionRules, direction: Direction, sizes: Sizes) -> None:
        self._sizes = sizes
        self._clean_masks: set[str] = set()  # rules whose masks hold nothing to mask
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

    def is_clean(self, raw: bytes) -> bool:
        """Whether one look at everything finds nothing; False may say too much."""
        if self._screen is None:
            return True
        if self._utf8_only:  # the engine's UTF-8 mode is undefined on anything else
            raw = _as_utf8(raw)
        values = _values_of(raw) if b"\\" in raw else raw
        return values is not None and not self._which(values)

    def scanning(self, raw: bytes) -> Turns[Scan]:
        if self._screen is None:
            return EMPTY
        if self._utf8_only:
            raw = _as_utf8(raw)
        suspected = yield from self._suspected(raw, all_of_them=True)
        return (yield from self._settling(raw, suspected)) if suspected else EMPTY

    def suspecting(self, raw: bytes) -> Turns[bool]:
        if self._screen is None:
            return False
        return bool((yield from self._suspected(_as_utf8(raw) if self._utf8_only else raw, all_of_them=False)))

    def _suspected(self, raw: bytes, *, all_of_them: bool) -> Turns[list[Piece]]:
        """Pieces in which something may be found: all, or one."""
        suspected: list[Piece] = []
        try:
            for piece in pieces(raw, self._sizes) if len(raw) > self._sizes.piece else (_whole(raw),):
                if piece is not None and not (yield from self._is_clean_piece(raw, piece)):
                    suspected.append(piece)
                    if not all_of_them:
                        break
                yield None
        except TooDeep:
            return [_whole(raw)]
        return suspected

    def _is_clean_piece(self, raw: bytes, piece: Piece) -> Turns[bool]:
        if not self.is_clean(without_long(raw, piece)):
            return False
        for start, end in piece.long:
            text = yield from self._text_in_turns(raw, start, end)
            if (yield from self._which_of(text)):
                return False
        return True

    def scan_text(self, text: bytes) -> Scan:
        if self._screen is None or not self._which(text):
            return EMPTY
        tally = _Tally()
        spans = at_once(self._judging(text, tally))
        if not tally.counts:
            return EMPTY
        tally.masks = len(spans)
        return self._outcome(tally, at_once(self._masking(text, spans)) if spans else None)

    def _which(self, text: bytes) -> list[int]:
        """The patterns looked at that match somewhere."""
        assert self._screen is not None
        return self._looked_at(self._screen.which(text))

    def _which_of(self, text: bytes) -> Turns[list[int]]:
        """The same, of a text of any length."""
        if len(text) <= self._sizes.long:
            return self._which(text)
        assert self._screen is not None
        found: list[int] = yield partial(self._screen.aside.which, text)
        return self._looked_at(found)

    def _looked_at(self, found: list[int]) -> list[int]:
        return [index for index in found if self._looks[index]] if found else found

    def _settling(self, raw: bytes, suspected: Iterable[Piece]) -> Turns[Scan]:
        tally = _Tally()
        parts: list[bytes] = []
        keys = _Keys(raw)
        done = 0
        for piece in suspected:
            edits: list[Edit] = []
            for number, (start, end) in enumerate(self._candidates(raw, piece), 1):
                text = yield from self._text_in_turns(raw, start, end)
                spans = yield from self._judging(text, tally)
                if spans:
                    tally.masks += len(spans)
                    token = yield from self._masked_token(raw, start, end, text, spans)
                    if _COLON.match(raw, end):
                        token = keys.unique(token)
                    edits.append(Edit(start - piece.start, end - piece.start, token))
                if number % TOKENS_AT_ONCE == 0:
                    yield None
            if edits:
                parts += (raw[done : piece.start], edited(raw[piece.start : piece.end], edits))
                done = piece.end
        if not tally.counts:
            return EMPTY
        return self._outcome(tally, b"".join((*parts, raw[done:])) if parts else None)

    def _candidates(self, raw: bytes, piece: Piece) -> Iterator[tuple[int, int]]:
        """Tokens to look at one by one: those with escapes, long ones, and those in which a match over the piece's
        bytes ended.
        """
        begin = piece.start
        for start, end in piece.long:
            yield from self._short_candidates(raw, begin, start)
            yield start, end
            begin = end
        yield from self._short_candidates(raw, begin, piece.end)

    def _short_candidates(self, raw: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
        tokens = [token.span() for token in _TOKEN.finditer(raw, begin, end)]
        ends = self._match_ends(raw[begin:end]) if len(tokens) > TOKENS_UNSIFTED_MAX else None
        next_end = 0
        for start, stop in tokens:
            if ends is not None and raw.find(b"\\", start, stop) < 0:
                while begin + ends[next_end] <= start:
                    next_end += 1
                if begin + ends[next_end] > stop:
                    continue
            yield start, stop

    def _match_ends(self, raw: bytes) -> list[int] | None:
        """Where matches over these bytes end, with a stop behind the last; None if they are too many to list."""
        assert self._locate is not None
        hits = self._locate.hits(raw)
        return None if len(hits) >= MATCHES_MAX else [*sorted({hit.end for hit in hits}), len(raw) + 1]

    def _text_in_turns(self, raw: bytes, start: int, end: int) -> Turns[bytes]:
        """What a string token says, or a number token as it is written."""
        if raw.find(b"\\", start, end) < 0:
            return raw[start + 1 : end - 1] if raw[start] == 0x22 else raw[start:end]
        try:
            if end - start <= self._sizes.long:
                return _decode_string(raw[start:end]).encode()
            parts: list[bytes] = []
            for part in parts_of_string(raw, start, end, self._sizes):
                parts.append(part.encode())
                yield None
            return b"".join(parts)
        except (msgspec.DecodeError, UnicodeError):
            return _text_of_odd(raw[start:end])

    def _judging(self, text: bytes, tally: _Tally) -> Turns[list[Span]]:
        """Count what matches in one decoded text; the spans, merged, that must not be shown."""
        assert self._locate is not None
        if len(text) <= self._sizes.long:
            hits = self._locate.hits(text, tally.matches_left)
        else:
            hits = yield partial(self._locate.aside.hits, text, tally.matches_left)
        if len(hits) >= tally.matches_left:
            tally.matches_left = 0
            return (yield from self._judging_coarsely(text, tally))
        if not hits:
            return []
        tally.matches_left -= len(hits)
        hidden: list[Span] = []
        valid = yield from self._valid_spans(text, [hit for hit in hits if self._looks[hit.number]])
        for index, spans in valid.items():
            found = merged(text, spans)
            tally.add(index, len(found))
            if self._hides[index]:
                hidden += found
            if len(found) > HITS_AT_ONCE:
                yield None
        return merged(text, hidden)

    def _judging_coarsely(self, text: bytes, tally: _Tally) -> Turns[list[Span]]:
        """Past the bound of matches: no validators, and a text in which anything must be hidden is hidden whole."""
        indexes = sorted((yield from self._which_of(text)))
        for index in indexes:
            tally.add(index, 1)
        return [Span(0, len(text), self._patterns[index].id) for index in indexes if self._hides[index]][:1]

    def _valid_spans(self, text: bytes, hits: list[Hit]) -> Turns[dict[int, list[Span]]]:
        """By pattern: the longest match from each start that its validator accepts."""
        spans: dict[int, dict[int, Span]] = {}
        for number, (index, start, end) in enumerate(reversed(hits), 1):
            if number % HITS_AT_ONCE == 0:
                yield None
            of_pattern = spans.setdefault(index, {})
            if start in of_pattern:
                continue
            validator = self._validators[index]
            if validator is None or validator(text[start:end]):
                of_pattern[start] = Span(start, end, self._patterns[index].id)
        return {index: list(of_pattern.values()) for index, of_pattern in spans.items() if of_pattern}

    def _masked_token(self, raw: bytes, start: int, end: int, text: bytes, spans: list[Span]) -> Turns[bytes]:
        if raw[start] != 0x22:  # a number becomes a string
            return b'"%b"' % mask_of(spans[0].rule)
        shown = yield from self._masking(text, spans)
        if raw.find(b"\\", start, end) < 0:
            return b'"%b"' % shown
        return _encode(shown.decode("utf-8", "replace"))

    def _masking(self, text: bytes, spans: list[Span]) -> Turns[bytes]:
        """Masked until nothing is left to mask: a replacement may give its neighbour a word boundary and so a match."""
        rule = spans[0].rule
        if spans[0].end - spans[0].start == len(text):
            text, spans = mask_of(rule), []
            if rule in self._clean_masks:
                return text
        for _ in range(MASKING_PASSES_MAX):
            text = masked_text(text, spans)
            left = yield from self._which_of(text)
            if not any(self._hides[index] for index in left):
                if text == mask_of(rule):
                    self._clean_masks.add(rule)
                return text
            spans = yield from self._judging(text, _Tally())
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


def _whole(raw: bytes) -> Piece:
    return Piece(0, len(raw), b"", b"", 0, 0, (), is_last=True)


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


def _text_of_odd(token: bytes) -> bytes:
    """A token that msgspec refuses: a lone surrogate, or no JSON at all."""
    try:
        return str(json.loads(token.decode("utf-8", "replace"), strict=False)).encode("utf-8", "replace")
    except ValueError:
        return token[1:-1].decode("utf-8", "replace").encode()


class _Keys:
    """Two keys that are masked alike must stay two keys, and other keys than all that were there."""

    def __init__(self, raw: bytes) -> None:
        self._given: set[bytes] = set()
        self._last: dict[bytes, int] = {}
        self._first = 1  # the mask without a number
        if b"[masked:" in raw:  # then with numbers beyond all that are there
            self._first += max(1, *map(int, _NUMBERED.findall(raw)), 1)

    def unique(self, token: bytes) -> bytes:
        number = self._last.get(token) or self._first
        unique = token if number == 1 else self._numbered(token, number)
        while unique in self._given:
            number += 1
            unique = self._numbered(token, number)
        self._last[token] = number + 1
        self._given.add(unique)
        return unique

    @staticmethod
    def _numbered(token: bytes, number: int) -> bytes:
        return b'%b (%d)"' % (token[:-1], number)
