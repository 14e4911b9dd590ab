"""Server-sent events, the receiving side: bytes in any cuts → events. Pure; the caller bounds `held_bytes`.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from typing import Final, NamedTuple

ID_BYTES_MAX: Final = 1_024  # an id goes into a header and into tickets; a longer one cannot be come back to
_MARK: Final = b"\xef\xbb\xbf"
_RETRY_DIGITS_MAX: Final = 9


class Event(NamedTuple):
    """`name` is empty for the default, "message"."""

    data: bytes
    name: bytes = b""


class EventReader:
    """Feed it. A line in many pieces is put together once."""

    def __init__(self) -> None:
        self.last_id = ""  # of the last event that ended and had one
        self.retry_ms: int | None = None
        self.held_bytes = 0  # of the event that has not ended
        self.unmarked = False  # an event without an id came: the stream cannot be come back to
        self._pieces: list[bytes] = []  # of the line that has not ended
        self._held = b""  # a CR that may be half of a CRLF, or the beginning of a byte order mark
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = b""
        self._id: bytes | None = None
        self._began = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes."""
        text, self._held = self._held + chunk, b""
        if not self._began:
            if _MARK.startswith(text):
                self._held = text
                return []
            text = text.removeprefix(_MARK)
            self._began = True
        if text.endswith(b"\r"):
            self._held, text = b"\r", text[:-1]
        if b"\n" not in text and b"\r" not in text:
            self._pieces.append(text)
            self.held_bytes += len(text)
            return []
        lines = (b"".join(self._pieces) + text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pieces = [lines.pop()]
        done: list[Event] = []
        for line in lines:
            if line.startswith(b"data: "):
                self._data.append(line[6:])
                self._data_bytes += len(line)
            elif line:
                self._field(line)
            else:
                self._end(done)
        self.held_bytes = self._data_bytes + len(self._pieces[0])
        return done

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(line)
        elif name == b"id" and b"\0" not in value:
            self._id = value
        elif name == b"event":
            self._name = value
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value[:_RETRY_DIGITS_MAX])

    def _end(self, done: list[Event]) -> None:
        """An id counts from the end of its event on, also where that has no data."""
        if self._id is not None:
            self.last_id = _header_value(self._id)
        if self._data:
            data = b"\n".join(self._data) if len(self._data) > 1 else self._data[0]
            self.unmarked = self.unmarked or (bool(data) and not self._id)
            done.append(Event(data, self._name))
            self._data, self._data_bytes = [], 0
        self._name, self._id = b"", None


def _header_value(value: bytes) -> str:
    """As Last-Event-ID may carry it; "" where it may not."""
    printable = len(value) <= ID_BYTES_MAX and all(0x20 <= byte < 0x7F for byte in value)
    return value.decode("ascii") if printable else ""
