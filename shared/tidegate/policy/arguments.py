"""A call's JSON arguments as a Cedar record, narrowed to what the rules look at. Described in docs/policy-encoding.md.

Rules: a value is never turned into an entity or an extension call of the caller's choosing; what Cedar cannot hold
exactly raises `NotRepresentable` (which the engine turns into a denial) and only where a rule needs it. Total on
anything a JSON decoder yields.
"""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from hashlib import blake2b

import msgspec

from tidegate.limits import JSON_DEPTH_MAX, POLICY_VALUES_MAX
from tidegate.policy.comparisons import Likeness, is_few
from tidegate.policy.rules import Need

RESERVED_KEYS = frozenset({"__entity", "__extn", "__expr"})
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_EXACT_FLOAT = 2.0**53  # beyond it a JSON number decoded as a float may not be the number that was sent
_EVERYTHING = Need(whole=True)
_encode = msgspec.json.Encoder().encode


class NotRepresentable(Exception):
    """An argument that a rule needs has no exact Cedar form. `path` as in "filter.limit", `why` completes "it …"."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path = path
        self.why = why


def encode_arguments(arguments: Mapping[str, object], need: Need) -> dict[str, object]:
    """Cedar JSON (as Python values) of what `need` names. Raises NotRepresentable."""
    return _Encoding().record(arguments, need, ())


class _Encoding:
    """One encoding; counts values, so that a large list cannot buy an unbounded evaluation."""

    def __init__(self) -> None:
        self._values_left = POLICY_VALUES_MAX

    def record(self, value: Mapping[str, object], need: Need, at: tuple[str, ...]) -> dict[str, object]:
        if len(at) > JSON_DEPTH_MAX:
            raise NotRepresentable(_name(at), f"is nested more than {JSON_DEPTH_MAX} levels deep")
        parts = need.parts
        if not need.whole and not need.compared:  # names out of rules, which are texts
            return {
                name: self.value(inner, part, (*at, name))
                for name, part in parts.items()
                if (inner := value.get(name)) is not None and (name not in RESERVED_KEYS or _unreserved(name, at))
            }
        return {
            name: self.value(inner, _whole(parts.get(name)), (*at, name))
            for name, inner in value.items()
            if inner is not None and _unreserved(name, at)
        }

    def value(self, value: object, need: Need, at: tuple[str, ...]) -> object:
        self._values_left -= 1
        if self._values_left < 0:
            raise NotRepresentable(_name(at[:1]), f"holds more than {POLICY_VALUES_MAX} values")
        if isinstance(value, dict):
            return self.record(value, need, at)
        if not (need.whole or need.parts or need.compared):
            return True  # only asked whether it is there
        if isinstance(value, str):
            return _text(value, at)
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return _decimal(Decimal(value), at) if need.decimal else _long(value, at)
        if isinstance(value, float):
            return _number(value, need.decimal, at)
        if isinstance(value, list):
            return self.items(value, at)
        raise NotRepresentable(_name(at), "is null inside a list" if value is None else "is not a JSON value")

    def items(self, values: list[object], at: tuple[str, ...]) -> list[object]:
        if len(at) > JSON_DEPTH_MAX:
            raise NotRepresentable(_name(at), f"is nested more than {JSON_DEPTH_MAX} levels deep")
        inside = (*at, "[]")
        return [self.value(value, _EVERYTHING, inside) for value in values]


class Alike:
    """Arguments without what the rules cannot tell apart: of two that are the same here, Cedar says the same."""

    def __init__(self, need: Need, at: tuple[str, ...] = ()) -> None:
        self._need, self._at = need, at
        plain = not (need.whole or need.compared) and RESERVED_KEYS.isdisjoint(need.parts)
        self._looks = [(name, _look(part, (*at, name))) for name, part in need.parts.items()] if plain else None

    def of(self, arguments: Mapping[str, object]) -> tuple[object, ...]:
        """To be compared with others for the same need. It holds no argument: what rules say, and digests. Raises
        NotRepresentable where `encode_arguments` does.
        """
        if self._looks is None:
            return (_digest(_Encoding().record(arguments, self._need, self._at)),)
        return tuple([None if (value := arguments.get(name)) is None else look(value) for name, look in self._looks])


def _look(need: Need, at: tuple[str, ...]) -> Callable[[object], object]:
    """What is seen of a value that is there."""

    def whole(value: object) -> object:
        return _digest(_Encoding().value(value, need, at))

    def compared(value: object) -> object:
        if type(value) is str:
            return likeness.of(value if value.isascii() else _text(value, at))
        return likeness.of(_long(value, at)) if type(value) is int else whole(value)

    def inner(value: object) -> object:
        return inside.of(value) if type(value) is dict else whole(value)

    if need.whole or (need.compared and (need.parts or not is_few(need.compared))):
        return whole
    if need.compared:
        likeness = Likeness(need.compared)
        return compared
    if need.parts:
        inside = Alike(need, at)
        return inner
    return lambda _: True


def _digest(encoded: object) -> bytes:
    """What was sent is not kept for longer than its call."""
    return blake2b(_encode(encoded), digest_size=32).digest()


def _whole(need: Need | None) -> Need:
    return _EVERYTHING if need is None else Need(True, need.decimal, need.parts)


def _unreserved(name: str, at: tuple[str, ...]) -> bool:
    if name in RESERVED_KEYS:
        raise NotRepresentable(_name((*at, name)), "has a name that the policy language keeps for itself")
    _text(name, at)
    return True


def _text(value: str, at: tuple[str, ...]) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotRepresentable(_name(at), "holds a lone surrogate") from None
    return value


def _long(value: int, at: tuple[str, ...]) -> int:
    if not _LONG_MIN <= value <= _LONG_MAX:
        raise NotRepresentable(_name(at), "is a whole number outside the 64-bit range")
    return value


def _number(value: float, decimal: bool, at: tuple[str, ...]) -> object:
    if not math.isfinite(value) or abs(value) >= _EXACT_FLOAT:
        raise NotRepresentable(_name(at), "is a number too large to be exact")
    if value.is_integer() and not decimal:
        return int(value)
    return _decimal(Decimal(repr(value)), at)


def _decimal(value: Decimal, at: tuple[str, ...]) -> object:
    scaled = value.scaleb(4) if value.adjusted() < 20 else Decimal(_LONG_MAX + 1)
    if scaled != scaled.to_integral_value():
        raise NotRepresentable(_name(at), "has more than four decimal places")
    if not _LONG_MIN <= scaled <= _LONG_MAX:
        raise NotRepresentable(_name(at), "is a number outside the range of decimals")
    return {"__extn": {"fn": "decimal", "arg": f"{value:.4f}"}}


def _name(at: tuple[str, ...]) -> str:
    name = ".".join(at).replace(".[]", "[]")
    return name.encode("utf-8", "replace").decode()[:200] or "arguments"
