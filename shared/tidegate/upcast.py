"""Reads events of older schema versions: one pure step per old version, applied until the type is a current one.

A step maps the object's members, each value still as stored, to the members of the next version, `type` included; what
it does not touch stays byte for byte. Counterpart: `chain.py` reads what is current. The stored bytes are never
rewritten.
"""

from collections.abc import Callable, Mapping

import msgspec

from tidegate.chain import open_event
from tidegate.events import AnyEvent, type_of

Members = dict[str, msgspec.Raw]
Step = Callable[[Members], Members]

STEPS: Mapping[str, Step] = {}
"""By the type that a step reads. Empty while every type is at its first version."""

CURRENT = frozenset(type_of(kind) for kind in AnyEvent.__args__)

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class UnknownType(msgspec.ValidationError):
    """No version of this software that this one knows of wrote such a type; a newer one may have."""


def open_any(value: bytes, steps: Mapping[str, Step] = STEPS) -> AnyEvent:
    """The event in stored bytes of any version. Raises msgspec.DecodeError, UnknownType where only the type is the
    matter.
    """
    try:
        return open_event(value)
    except msgspec.ValidationError:
        if _is_current(value):
            raise
    try:
        return open_event(lift(value, steps))
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def lift(value: bytes, steps: Mapping[str, Step] = STEPS) -> bytes:
    """The bytes as the current version would have written them, for reading only. Raises UnknownType."""
    members = _members.decode(value)
    kind = _kind_of(value)
    for _ in range(len(steps) + 1):
        if kind in CURRENT:
            return msgspec.json.encode(members)
        if kind not in steps:
            raise UnknownType(f"unknown event type '{kind}'")
        members = steps[kind](members)
        kind = msgspec.json.decode(members["type"], type=str)
    raise UnknownType(f"the steps from '{kind}' never reach a current type")


def _is_current(value: bytes) -> bool:
    try:
        return _kind_of(value) in CURRENT
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def _kind_of(value: bytes) -> str:
    return msgspec.json.decode(value, type=_Kind).type


class _Kind(msgspec.Struct):
    type: str
