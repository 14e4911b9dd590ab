"""Validators: whether a match counts, where a pattern alone is weak. Pure: the match goes in, a verdict comes out.

A match may hold a little more than the thing itself, as the engine reports the leftmost start: a validator looks for a
valid value at any word's beginning inside it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Final

Validator = Callable[[bytes], bool]

_CARD_LENGTHS: Final = range(12, 20)
_PHONE_LENGTHS: Final = range(8, 16)
_GROUP = re.compile(rb"\d+")
_IBAN_START = re.compile(rb"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}")
_ASSIGNED = re.compile(rb"[\w.\"' -]{1,64}?\s*(?::=|=>|[:=])\s*[\"']?(.+)", re.DOTALL)
_PLACEHOLDER = re.compile(
    rb"(?i)example|placeholder|changeme|change_me|your[_-]|xxxx|\*\*\*|<|\$\{|\{\{|process\.env|os\.environ"
)

# ISO 13616: the length of an IBAN by country.
_IBAN_LENGTHS: Final = {
    word[:2]: int(word[2:])
    for word in (
        b"AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 "
        b"ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
        b"LB28 LC32 LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 "
        b"RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 TN24 TR26 UA29 VA22 VG24 XK20 "
    ).split()
}


def luhn(match: bytes) -> bool:
    """A payment card number (ISO/IEC 7812-1 check digit) ends here."""
    for group in _GROUP.finditer(match):
        digits = [byte - 48 for byte in match[group.start() :] if 48 <= byte <= 57]
        if len(digits) in _CARD_LENGTHS and len(set(digits)) > 1 and _luhn_sum(digits) % 10 == 0:
            return True
    return False


def _luhn_sum(digits: list[int]) -> int:
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return sum(digits[::-2]) + sum(doubled)


def iban(match: bytes) -> bool:
    """An IBAN of the right length for its country whose ISO 7064 check (mod 97 = 1) holds begins here."""
    for start in _IBAN_START.finditer(match):
        compact = match[start.start() :].replace(b" ", b"").upper()
        length = _IBAN_LENGTHS.get(compact[:2])
        if length is not None and len(compact) >= length and _mod_97(compact[:length]) == 1:
            return True
    return False


def _mod_97(compact: bytes) -> int:
    turned = compact[4:] + compact[:4]
    if not turned.isalnum():
        return 0
    return int("".join(str(int(chr(byte), 36)) for byte in turned)) % 97


def entropy(match: bytes) -> bool:
    """The value (what follows `=` or `:` in an assignment, else all of it) looks random: no word, no placeholder."""
    assigned = _ASSIGNED.fullmatch(match)
    value = assigned[1].rstrip(b"\"'") if assigned else match
    if len(value) < 8 or _PLACEHOLDER.search(value):
        return False
    has_digit = any(48 <= byte <= 57 for byte in value)
    has_letter = any(chr(byte).isalpha() for byte in value)
    return has_digit and has_letter and _bits_per_byte(value) >= (2.5 if len(value) < 16 else 3.0)


def _bits_per_byte(value: bytes) -> float:
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values())


def phone(match: bytes) -> bool:
    """As many digits as a telephone number has (ITU-T E.164: at most 15)."""
    return sum(48 <= byte <= 57 for byte in match) in _PHONE_LENGTHS


VALIDATORS: Final[dict[str, Validator]] = {"luhn": luhn, "iban": iban, "entropy": entropy, "phone": phone}
"""By the name that `validator:` takes in inspection.yaml."""
