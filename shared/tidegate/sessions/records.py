"""A client's session as it is stored, and what may change in it. Pure."""

import msgspec

from tidegate.errors import CallerFault
from tidegate.limits import SESSION_RECORD_BYTES_MAX
from tidegate.sessions.port import SessionRecord


def record_as_stored(record: SessionRecord) -> bytes:
    """Raises CallerFault when it is too large."""
    stored = msgspec.json.encode(record)
    if len(stored) > SESSION_RECORD_BYTES_MAX:
        raise CallerFault(
            f"clientInfo and capabilities are larger than {SESSION_RECORD_BYTES_MAX} bytes together; send less of them",
            code="session-too-large",
        )
    return stored


def amended(
    record: SessionRecord, stored: bytes, log_level: str | None, subscribe: str, unsubscribe: str
) -> tuple[SessionRecord, bytes]:
    """The record with the change, and as stored: fields that only a newer edge knows are kept. Raises CallerFault."""
    uris = [uri for uri in record.uris if uri != unsubscribe]
    if subscribe and subscribe not in uris:
        uris.append(subscribe)
    level = record.log_level if log_level is None else log_level
    if level == record.log_level and tuple(uris) == record.uris:
        return record, stored
    fields = msgspec.json.decode(stored, type=dict[str, msgspec.Raw])
    fields["log_level"] = msgspec.Raw(msgspec.json.encode(level))
    fields["uris"] = msgspec.Raw(msgspec.json.encode(uris))
    rewritten = msgspec.json.encode(fields)
    if len(rewritten) > max(SESSION_RECORD_BYTES_MAX, len(stored)):
        raise CallerFault(
            f"what this session holds is larger than {SESSION_RECORD_BYTES_MAX} bytes; unsubscribe from resources",
            code="session-too-large",
        )
    return msgspec.structs.replace(record, log_level=level, uris=tuple(uris)), rewritten
