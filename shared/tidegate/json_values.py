"""Any JSON as values, for what comes from outside: msgspec alone takes more than a hundred times as long for `1e308` as
for `1.5`; here Python reads both. Values and refusals are msgspec's own. Pure.
"""

import math
from typing import Any, Final

import msgspec


def _fraction(token: str) -> float:
    value = float(token)
    if math.isinf(value):
        raise ValueError("Number out of range")
    return value


DECODER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(float_hook=_fraction)
decode: Final = DECODER.decode
"""Raises msgspec.DecodeError, and UnicodeDecodeError and RecursionError as any decoder of msgspec does."""
