"""The caller's network address: the connection's peer or, behind proxies that are trusted, the one that they vouch for.
Pure, total, fuzzed.

A forwarding header is read from its end, where the nearest proxy wrote, entry by entry, for as long as whoever wrote is
trusted; what stands further left was sent by a stranger and need not even be readable. What is read and cannot be is
unknown (""), and so is a caller of whom nobody tells: a proxy's own address is often one that rules let in, and clients
have made proxies drop the header that they write (`Connection: X-Forwarded-For`). Sources: RFC 7239; X-Forwarded-For as
proxies write it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Final

HOPS_MAX: Final = 32
FORWARDING: Final = (b"x-forwarded-for", b"forwarded")

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = rb'"(?:[^"\\]|\\.)*"'
_PAIR: Final = re.compile(rb"(%b)=(%b|%b)" % (_TOKEN, _TOKEN, _QUOTED))
_COMMA, _SEMICOLON, _BACKSLASH = b",;\\"
_NODE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Proxies:
    """Whose word about addresses counts, and the header that they say it in."""

    def __init__(self, trusted: Iterable[str], header: str) -> None:
        self._trusted: tuple[Network, ...] = tuple(ip_network(one) for one in trusted)
        self._header = header.encode()
        self._read = _forwarded if self._header == b"forwarded" else _x_forwarded_for

    def address(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        """Of the caller, in its shortest textual form; "" where it is not known. `peer`: of the connection."""
        at = read_address(peer)
        if at is None or not self._trusts(at):
            return "" if at is None else str(at)
        for hop in islice(self._read(headers.get(self._header, b"")), HOPS_MAX):
            if (at := read_address(hop)) is None:
                return ""
            if not self._trusts(at):
                return str(at)
        return ""

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def read_address(text: str) -> Address | None:
    """An address as a socket or a proxy writes it, with or without a port; None where it is none. An IPv4 address in
    IPv6's clothes is the IPv4 address; the zone of a link-local one is of the machine that names it.
    """
    node = _NODE.fullmatch(text)
    try:
        found = ip_address((node[1] or node[2]) if node else text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _x_forwarded_for(value: bytes) -> Iterator[str]:
    """The entries from the last to the first."""
    return (part.strip(b" \t").decode("latin-1") for part in reversed(value.split(b",")))


def _forwarded(value: bytes) -> Iterator[str]:
    """The `for` of each element from the last to the first; "" and the end where an element is not RFC 7239's.

    Each is read by itself: a stranger's part that cannot be read takes nothing from what a proxy wrote behind it. Going
    left, a quoted value begins at the first quote that no backslash stands before, for `=` stands there, and a value
    without quotes holds no separator; so what is well-formed is read the same whatever stands to its left.
    """
    separated = value.replace(b";", b",")  # one search finds the nearest of both
    end, node = len(value), ""
    while (pair := _PAIR.fullmatch(value, _pair_start(value, separated, end), end)) is not None:
        if pair[1].lower() == b"for":
            if node:  # twice in one element
                break
            node = _unquoted(pair[2]).decode("latin-1") or " "
        end = _without_blanks(value, pair.start())
        if end == 0 or value[end - 1] == _COMMA:
            yield node
            node = ""
        elif value[end - 1] != _SEMICOLON:
            break
        if end == 0:
            return
        end = _without_blanks(value, end - 1)
    yield ""


def _pair_start(value: bytes, separated: bytes, end: int) -> int:
    """Where the pair that ends at `end` begins, if one does."""
    start = end
    if value[end - 1 : end] == b'"':
        start = value.rfind(b'"', 0, end - 1)
        while start > 0 and value[start - 1] == _BACKSLASH:
            start = value.rfind(b'"', 0, start)
    start = separated.rfind(b",", 0, max(start, 0)) + 1
    while start < end and value[start] in b" \t":
        start += 1
    return start


def _without_blanks(value: bytes, end: int) -> int:
    while end and value[end - 1] in b" \t":
        end -= 1
    return end


def _unquoted(value: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", value[1:-1]) if value[:1] == b'"' else value
