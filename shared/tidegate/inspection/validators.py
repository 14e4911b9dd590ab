"""Validators: whether a match counts, where a pattern alone is weak. Pure; the whole match goes in, a verdict comes out.

A match may hold a little more than the thing itself (the engine reports the leftmost start), so each validator looks for a
valid value that ends with the match, beginning at any word boundary.
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
_PLACEHOLDER = re.compile(rb"(?i)example|placeholder|changeme|change_me|your[_-]|xxxx|\*\*\*|<|\$\{|\{\{|process\.env|os\.environ")

# ISO 13616: the length of an IBAN by country.
_IBAN_LENGTHS: Final = {
    b"AD": 24, b"AE": 23, b"AL": 28, b"AT": 20, b"AZ": 28, b"BA": 20, b"BE": 16, b"BG": 22, b"BH": 22, b"BR": 29, b"BY": 28,
    b"CH": 21, b"CR": 22, b"CY": 28, b"CZ": 24, b"DE": 22, b"DK": 18, b"DO": 28, b"EE": 20, b"EG": 29, b"ES": 24, b"FI": 18,
    b"FO": 18, b"FR": 27, b"GB": 22, b"GE": 22, b"GI": 23, b"GL": 18, b"GR": 27, b"GT": 28, b"HR": 21, b"HU": 28, b"IE": 22,
    b"IL": 23, b"IQ": 23, b"IS": 26, b"IT": 27, b"JO": 30, b"KW": 30, b"KZ": 20, b"LB": 28, b"LC": 32, b"LI": 21, b"LT": 20,
    b"LU": 20, b"LV": 21, b"MC": 27, b"MD": 24, b"ME": 22, b"MK": 19, b"MR": 27, b"MT": 31, b"MU": 30, b"NL": 18, b"NO": 15,
    b"PK": 24, b"PL": 28, b"PS": 29, b"PT": 25, b"QA": 29, b"RO": 24, b"RS": 22, b"SA": 24, b"SC": 31, b"SE": 24, b"SI": 19,
    b"SK": 24, b"SM": 27, b"TN": 24, b"TR": 26, b"UA": 29, b"VA": 22, b"VG": 24, b"XK": 20,
}  # fmt: skip


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
