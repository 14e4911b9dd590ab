"""Server-sent events, the receiving side: bytes in any cuts → the data of each event. Pure; bounded by the caller's
byte count.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream". Only `data` matters for MCP requests.
"""


class EventReader:
    """Feed it; it keeps what it has seen in `events`."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self._rest = b""
        self._data: list[bytes] = []
        self._began = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this chunk completes."""
        text = self._rest + chunk
        if not self._began and len(text) >= 3:
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._began = True
        if text.endswith(b"\r"):  # perhaps half of a CRLF
            self._rest, text = b"\r", text[:-1]
        else:
            self._rest = b""
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + self._rest
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
