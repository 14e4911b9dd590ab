"""What `control-state` holds of an erased subject, under `tenant|erased|subject_id`: the last `subject.erased`, and
whether every key is off the log. Written by the policy service; edges that start later destroy their keys by it. Pure.
"""

import msgspec

from tidegate.chain import open_event
from tidegate.events import SubjectErased

_WORD = "erased"


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    done: bool
    event: msgspec.Raw  # as the history has it


class Erasure(msgspec.Struct, frozen=True):
    """`done`: no key of it is on the log any more."""

    event: SubjectErased
    done: bool


def state_key(tenant: str, subject_id: str) -> bytes:
    return f"{tenant}|{_WORD}|{subject_id}".encode()


def is_erasure(key: bytes) -> bool:
    """Whether a key of `control-state` is that of an erased subject; the others are quarantines."""
    return key.split(b"|", 2)[1:2] == [_WORD.encode()] and key.count(b"|") == 2


def state_value(event: bytes, done: bool) -> bytes:
    """Of a stored `subject.erased`."""
    return msgspec.json.encode(_Stored(done=done, event=msgspec.Raw(event)))


def read_erasure(value: bytes) -> Erasure:
    """Raises msgspec.DecodeError."""
    try:
        stored = msgspec.json.decode(value, type=_Stored)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    event = open_event(bytes(stored.event))
    if not isinstance(event, SubjectErased):
        raise msgspec.ValidationError("it does not hold a subject.erased")
    return Erasure(event, stored.done)
