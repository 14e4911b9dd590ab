"""Request bodies of ClickHouse's HTTP interface: received into a file, decompressed on the way, bounded in both forms.

Clients send one compressed frame per block, so a body is a sequence of frames: reading the first alone would lose the
rest.
"""

from typing import IO, Any

import lz4.frame  # type: ignore[import-untyped]
from backports import zstd

HEAD_BYTES = 256 * 1024  # of the decompressed body, handed back for the statement in it
CHUNK_BYTES = 4 * 1024 * 1024  # decompressed at a time


class BodyFault(Exception):
    """The body cannot be taken."""

    def __init__(self, sentence: str, *, too_large: bool = False) -> None:
        super().__init__(sentence)
        self.too_large = too_large


async def receive_body(receive: Any, into: IO[bytes], encoding: str, bytes_max: int) -> bytes:
    """Write the decompressed body to the file; its first HEAD_BYTES. Raises BodyFault."""
    frames = Frames(encoding)
    head = bytearray()
    received = written = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyFault("the client went away")
        more = message.get("more_body", False)
        received += len(message.get("body", b""))
        if received > bytes_max:
            raise BodyFault(f"the body has more than {bytes_max} bytes", too_large=True)
        frames.feed(message.get("body", b""))
        while chunk := frames.take():
            written += len(chunk)
            if written > bytes_max:
                raise BodyFault(f"the body has more than {bytes_max} bytes when decompressed", too_large=True)
            head += chunk[: HEAD_BYTES - len(head)]
            into.write(chunk)
    if not frames.whole:
        raise BodyFault("the last compressed frame is cut off")
    into.flush()
    return bytes(head)


class Frames:
    """Decompresses a sequence of frames, a bounded piece at a time."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity", "lz4", "zstd"):
            raise BodyFault(f"Content-Encoding '{encoding}' is not taken; send lz4, zstd or none")
        self._encoding = encoding
        self._pending = b""
        self._frame: Any = None

    @property
    def whole(self) -> bool:
        """No frame is open."""
        return self._frame is None and not self._pending

    def feed(self, received: bytes) -> None:
        self._pending += received

    def take(self) -> bytes:
        """The next piece; empty when more input is needed. Raises BodyFault."""
        if self._encoding in ("", "identity"):
            piece, self._pending = self._pending, b""
            return piece
        while self._pending or (self._frame is not None and not self._frame.needs_input):
            if self._frame is None:
                self._frame = lz4.frame.LZ4FrameDecompressor() if self._encoding == "lz4" else zstd.ZstdDecompressor()
            try:
                piece = bytes(self._frame.decompress(self._pending, CHUNK_BYTES))
            except (RuntimeError, zstd.ZstdError, EOFError) as error:
                raise BodyFault(f"the body is not {self._encoding}: {error}") from None
            self._pending = b""
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data or b"", None
            if piece:
                return piece
        return b""
