"""inspection.yaml of a bundle: from text to `InspectionRules`, or a BundleFault that names the place and the remedy.

    packs: [secrets, personal-data, injection]      # built-in patterns, see packs.py
    overrides: {email: {result: mask}}              # another action or severity for one of them
    patterns:
      - {id: ticket, pattern: 'TCK-\\d{6}', severity: low, arguments: allow, result: alert, record: keep}

What only alerts goes on as it is, and is masked in events all the same unless it says `record: keep`.

Counterpart: `scanner.py` runs the rules.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
import yaml

from tidegate.errors import BundleFault
from tidegate.inspection.engine import Database, Expression, Uncompilable
from tidegate.inspection.masking import mask_of
from tidegate.inspection.packs import PACKS
from tidegate.inspection.patterns import Action, InspectionRules, Pattern, Record, Severity
from tidegate.inspection.validators import VALIDATORS
from tidegate.plain_yaml import NotPlain, PlainLoader, check_plain

__all__ = ["InspectionRules", "Pattern", "load_inspection"]

FILE = "inspection.yaml"
TEXT_BYTES_MAX = 512 * 1024
PATTERNS_MAX = 512
PATTERN_CHARS_MAX = 2_048
_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    pattern: str
    description: str = ""
    flags: tuple[Literal["ignore-case"], ...] = ()
    severity: Severity = "medium"
    validator: str = ""
    arguments: Action = "alert"
    result: Action = "alert"
    record: Record = "mask"


class _Override(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    arguments: Action | None = None
    result: Action | None = None
    severity: Severity | None = None
    record: Record | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    packs: tuple[str, ...] = ()
    overrides: dict[str, _Override] = {}
    patterns: tuple[_Entry, ...] = ()


def load_inspection(text: bytes) -> InspectionRules:
    """The rules in an inspection.yaml; empty text means none. Raises BundleFault. Compiles every pattern to be sure."""
    file = _parsed(text)
    patterns = (*_from_packs(file), *_from_entries(file))
    if len(patterns) > PATTERNS_MAX:
        raise _fault("$.patterns", f"{len(patterns)} patterns, packs included; the most is {PATTERNS_MAX}")
    _refuse_twins(patterns)
    for pattern in patterns:
        _check(pattern)
    _check_compiles(patterns)
    return InspectionRules(patterns)


def _fault(where: str, sentence: str) -> BundleFault:
    return BundleFault(f"{FILE}: {where}: {sentence}", code="bad-inspection")


def _parsed(text: bytes) -> _File:
    if len(text) > TEXT_BYTES_MAX:
        raise _fault("$", f"{len(text)} bytes; the most is {TEXT_BYTES_MAX}")
    try:
        check_plain(text)
        raw = yaml.load(text, Loader=PlainLoader)  # noqa: S506
    except NotPlain as unfit:
        raise _fault(f"line {unfit.line}", str(unfit)) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _fault("$", f"is not valid YAML: {error}") from error
    try:
        return msgspec.convert({} if raw is None else raw, _File)
    except (msgspec.ValidationError, RecursionError) as error:
        what, _, where = str(error).partition(" - at ")
        raise _fault(where.strip("`") or "$", what) from error


def _from_packs(file: _File) -> Iterator[Pattern]:
    chosen: dict[str, Pattern] = {}
    for index, name in enumerate(file.packs):
        if name not in PACKS:
            raise _fault(f"$.packs[{index}]", f"no pack '{name}'{_closest(name, PACKS)}; there are {', '.join(PACKS)}")
        chosen |= {pattern.id: pattern for pattern in PACKS[name]}
    for id, override in file.overrides.items():
        if id not in chosen:
            raise _fault(
                f"$.overrides.{id}", f"no such pattern in the chosen packs{_closest(id, chosen)}; add its pack to packs"
            )
        changes = {name: value for name, value in msgspec.structs.asdict(override).items() if value is not None}
        chosen[id] = msgspec.structs.replace(chosen[id], **changes)
    yield from chosen.values()


def _from_entries(file: _File) -> Iterator[Pattern]:
    for index, entry in enumerate(file.patterns):
        yield Pattern(
            id=entry.id,
            pattern=entry.pattern,
            description=entry.description,
            severity=entry.severity,
            ignore_case="ignore-case" in entry.flags,
            validator=entry.validator,
            arguments=entry.arguments,
            result=entry.result,
            record=entry.record,
            where=f"$.patterns[{index}]",
        )


def _refuse_twins(patterns: Iterable[Pattern]) -> None:
    seen: dict[str, Pattern] = {}
    for pattern in patterns:
        if pattern.id in seen:
            first = seen[pattern.id].where
            hint = (
                "use overrides to change a built-in pattern" if first == "built in" else "give each pattern its own id"
            )
            raise _fault(f"{pattern.where}.id", f"'{pattern.id}' is taken ({first}); {hint}")
        seen[pattern.id] = pattern


def _check(pattern: Pattern) -> None:
    where = pattern.where
    if not _ID.fullmatch(pattern.id):
        raise _fault(
            f"{where}.id",
            f"'{pattern.id}' is not 1 to 64 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        )
    if pattern.validator and pattern.validator not in VALIDATORS:
        known = ", ".join(VALIDATORS)
        raise _fault(
            f"{where}.validator",
            f"no validator '{pattern.validator}'{_closest(pattern.validator, VALIDATORS)}; there are {known}",
        )
    if not 0 < len(pattern.pattern) <= PATTERN_CHARS_MAX:
        raise _fault(f"{where}.pattern", f"expected 1 to {PATTERN_CHARS_MAX} characters, got {len(pattern.pattern)}")
    if anchor := _anchor(pattern.pattern):
        raise _fault(
            f"{where}.pattern",
            f"the anchor {anchor} is not supported: values are scanned inside their document, where a text has no "
            r"beginning or end of its own; use \b for a word's edge",
        )


def _anchor(pattern: str) -> str | None:
    r"""The first of ^ $ \A \Z \z \G outside a character class."""
    in_class = False
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            if not in_class and pattern[position + 1 : position + 2] in tuple("AZzG"):
                return pattern[position : position + 2]
            if not in_class and pattern.startswith("\\Q", position):
                end = pattern.find("\\E", position)
                position = len(pattern) if end < 0 else end
            position += 2
            continue
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
            position += 1 if pattern[position + 1 : position + 2] == "^" else 0
            position += 1 if pattern[position + 1 : position + 2] == "]" else 0
        elif char in "^$":
            return char
        position += 1
    return None


def _check_compiles(patterns: tuple[Pattern, ...]) -> None:
    if not patterns:
        return
    try:
        database = Database(
            [Expression(pattern.pattern, pattern.ignore_case, True) for pattern in patterns], single=False
        )
    except Uncompilable as error:
        culprit = patterns[error.number]
        raise _fault(f"{culprit.where}.pattern", f"'{culprit.id}' does not compile: {error.reason}") from error
    for mask in (mask_of(pattern.id) for pattern in patterns):
        for hit in database.hits(mask):
            culprit = patterns[hit.number]
            validates = VALIDATORS[culprit.validator](mask[hit.start : hit.end]) if culprit.validator else True
            if validates and {"mask", "block"} & {culprit.arguments, culprit.result}:
                sentence = (
                    f"'{culprit.id}' matches the text that replaces masked values ({mask.decode()}); make it narrower"
                )
                raise _fault(f"{culprit.where}.pattern", sentence)


def _closest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
