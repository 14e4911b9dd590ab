"""Which calls have a request and no completion yet, told from stored bytes without decoding them.

Relies on the stored form: `type` comes first, `call_id` and `decision` before anything that a caller may have written,
and a quote inside a JSON string is always escaped. Counterparts: `chain.py` (the stored form), `spool.py` (keeps this
beside its segments, so that a shipped request is still known when its segment is gone).
"""

from collections.abc import Iterable
from pathlib import Path

from tidegate.log.frames import BadFrame, decode, encode
from tidegate.log.port import Record
from tidegate.log.segments import replace_file

_TYPE = b'"type":"call.'
_CALL_ID = b'"call_id":"'
_DECISION = b'"decision":"'
_HEAD_BYTES = 1024  # writer, seq and prev come before the type; an edge's id is far shorter than this


class OpenCalls:
    """Requests that were allowed, by call id, in order; a completion (or an abandonment) closes one."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._open: dict[bytes, Record] = {}
        for record in records:
            self.note(record)

    def note(self, record: Record) -> None:
        """Take a record into account, in log order; what is no event of a call changes nothing."""
        value = record.value
        if record.topic != "calls" or value is None:
            return
        at = value.find(_TYPE, 0, _HEAD_BYTES)
        id_at = value.find(_CALL_ID, at) + len(_CALL_ID)
        if at < 0 or id_at < len(_CALL_ID):
            return
        call_id = value[id_at : value.find(b'"', id_at)]
        if not value.startswith(b"requested", at + len(_TYPE)):
            self._open.pop(call_id, None)
        elif value.startswith(b'allow"', value.find(_DECISION, id_at) + len(_DECISION)):
            self._open[call_id] = record

    def records(self) -> list[Record]:
        """The open requests, oldest first."""
        return list(self._open.values())

    def copy(self) -> "OpenCalls":
        twin = OpenCalls()
        twin._open = dict(self._open)
        return twin

    def keep(self, path: Path) -> None:
        """Durable on return. Raises OSError."""
        replace_file(path, encode(self.records()))


def kept_calls(path: Path) -> tuple[OpenCalls, str]:
    """What `keep` left, and what to report ("" if whole)."""
    calls = OpenCalls()
    if not path.exists():
        return calls, ""
    content, at = path.read_bytes(), 0
    try:
        while (found := decode(content, at)) is not None:
            record, at = found
            calls.note(record)
    except (BadFrame, ValueError) as error:
        return calls, f"{path.name}: {error}; some calls that never ended may stay 'unknown'"
    return calls, ""
