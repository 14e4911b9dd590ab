"""How the spool lays records in a file: length, checksum, body. Counterpart: `segments.py` reads and writes the files.

    length u32 | crc u32 | flags u8 | topic length u8 | key length u16 | headers length u16 | topic | key | headers |
    value

Little-endian. `length` counts what follows the checksum; the CRC-32 covers that, seeded with the length. A length of 0
(the zeros that a segment is filled up with) is the end. Flag 1: the value is None.
"""

import re
import struct
import zlib
from collections.abc import Sequence

import msgspec

from tidegate.limits import EVENT_BYTES_MAX
from tidegate.log.port import Record

_PREFIX = struct.Struct("<II")
_META = struct.Struct("<BBHH")
_NONE = 1
_LENGTH_MAX = EVENT_BYTES_MAX + _META.size + 0xFF + 2 * 0xFFFF
_PLAUSIBLE = re.compile(rb"(?s)(?=(?!\0{3})..[\0-\x10]\0....[\0\1])")  # a length below 2**20, and flags
_headers = msgspec.json.Decoder(tuple[tuple[str, bytes], ...])


class BadFrame(Exception):
    """The bytes at this place are no frame: torn, flipped or foreign."""


def encode(records: Sequence[Record]) -> bytes:
    """One buffer for one write. Raises ValueError for a topic, key or headers over their length fields."""
    parts: list[bytes] = []
    crc32, meta_of, prefix_of = zlib.crc32, _META.pack, _PREFIX.pack
    for topic, key, value, headers in records:
        name = topic.encode()
        packed = msgspec.json.encode(headers) if headers else b""
        flags = 0
        if value is None:
            flags, value = _NONE, b""
        try:
            small = b"%b%b%b%b" % (meta_of(flags, len(name), len(key), len(packed)), name, key, packed)
        except struct.error as error:
            raise ValueError(f"topic, key or headers of a record for {topic} are too long ({error})") from error
        length = len(small) + len(value)
        if length > _LENGTH_MAX:
            raise ValueError(f"a record of {len(value)} bytes for {topic}: the log takes {EVENT_BYTES_MAX} at most")
        parts += (prefix_of(length, crc32(value, crc32(small, length))), small, value)
    return b"".join(parts)


def decode(buffer: bytes, at: int) -> tuple[Record, int] | None:
    """The record at this place and where the next one begins; None at the end. Raises BadFrame."""
    if at >= len(buffer):
        return None
    body = at + _PREFIX.size
    if body > len(buffer):
        if any(buffer[at:]):
            raise BadFrame("it ends within a frame's length")
        return None
    length, crc = _PREFIX.unpack_from(buffer, at)
    if length == 0 and crc == 0:
        return None
    end = body + length
    if not _META.size <= length <= _LENGTH_MAX or end > len(buffer):
        raise BadFrame(f"a frame of {length} bytes does not fit")
    if zlib.crc32(memoryview(buffer)[body:end], length) != crc:
        raise BadFrame("a checksum does not match")
    return _record(buffer, body, end), end


def resume(buffer: bytes, at: int) -> int | None:
    """The next place after the damage at `at` where a whole frame begins; None without any.

    Byte by byte, for a damaged length leads anywhere. A frame inside another's value would be found as well; but
    values are JSON, which holds no zero byte, and each frame's length does.
    """
    for found in _PLAUSIBLE.finditer(buffer, at + 1):
        if _is_frame(buffer, found.start()):
            return found.start()
    return None


def _is_frame(buffer: bytes, at: int) -> bool:
    try:
        return decode(buffer, at) is not None
    except (BadFrame, ValueError):
        return False


def skip(buffer: bytes, at: int, number: int) -> int:
    """The place `number` frames on, by their lengths alone."""
    for _ in range(number):
        if at + _PREFIX.size > len(buffer):
            break  # a damaged length led astray; `decode` says so
        (length,) = struct.unpack_from("<I", buffer, at)
        at += _PREFIX.size + length
    return at


def _record(buffer: bytes, body: int, end: int) -> Record:
    flags, topic_length, key_length, headers_length = _META.unpack_from(buffer, body)
    topic = body + _META.size
    key = topic + topic_length
    headers = key + key_length
    value = headers + headers_length
    if value > end:
        raise BadFrame("a frame's parts are longer than the frame")
    return Record(
        buffer[topic:key].decode(),
        buffer[key:headers],
        None if flags & _NONE else buffer[value:end],
        _headers.decode(buffer[headers:value]) if headers_length else (),
    )
