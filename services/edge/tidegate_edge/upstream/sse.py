"""Server-sent events, the receiving side: bytes in any cuts → the data of each event. Pure; bounded by the caller's
byte count.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream". Only `data` matters for MCP requests.
"""

from typing import Final

_MARK: Final = b"\xef\xbb\xbf"


class EventReader:
    """Feed it; it keeps what it has seen in `events`. A line in many pieces is put together once."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self._pieces: list[bytes] = []  # of the line that has not ended
        self._held = b""  # a CR that may be half of a CRLF, or the beginning of a byte order mark
        self._data: list[bytes] = []
        self._began = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this chunk completes."""
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
            return []
        lines = (b"".join(self._pieces) + text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pieces = [lines.pop()]
        done: list[bytes] = []
        for line in lines:
            if line == b"":
                if self._data:
                    done.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data"):
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
        self.events.extend(done)
        return done
