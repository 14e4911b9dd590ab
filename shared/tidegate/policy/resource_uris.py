"""One spelling for each resource: RFC 3986, section 6.2.2, and what the URL parsers of servers do beyond it. Pure.

Many spellings name one resource to a server: `DOCS://payroll`, `docs://pay%72oll`, `docs://x/../payroll`. Rules and
quarantines see one, `ruled`; what is sent on is `normal`, or the very spelling that the server itself has listed. What
no URI may hold, and what parsers read in different ways, has no normal form: such a request is refused.
"""

import re
from contextlib import suppress
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

RESOURCES_READ: Final = "resources/read"
"""What policy decides on for all that is about a server's resources."""
PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
"""The schemes whose URIs name a host as the network knows it (WHATWG's special ones, but for `file`)."""
KEPT_MAX: Final = 1_024
_KEPT_CHARS_MAX: Final = 512
_PLAIN: Final = r"A-Za-z0-9._~!$&'()*+,;=\-"
_PARTS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_UNFIT: Final = re.compile(r"[\x00-\x20\x7f-\xa0\\\ud800-\udfff]|\s")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NOT_IN_HOST: Final = re.compile(rf"%[0-9A-Fa-f]{{2}}|[^{_PLAIN}]")
_NOT_IN_PATH: Final = re.compile(rf"%[0-9A-Fa-f]{{2}}|[^{_PLAIN}:@/]")
_NOT_IN_QUERY: Final = re.compile(rf"%[0-9A-Fa-f]{{2}}|[^{_PLAIN}:@/?]")
_NOT_IN_TEXT: Final = re.compile(rf"%[0-9A-Fa-f]{{2}}|[^{_PLAIN}:@/?#%\[\]]")
_ESCAPED_ONLY: Final = re.compile(rf"[^{_PLAIN}:@/?#%\[\]{{}}]")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_IN_BRACKETS: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]*))?")
_NETWORK_NAME: Final = re.compile(rf"[{_PLAIN}]+")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_HOST: Final = re.compile(r"([a-z][a-z0-9+.-]*://(?:[^/?#]*@)?)([^/?#]*)(.*)", re.DOTALL)
_EXPRESSION: Final = re.compile(r"(\{[^{}]*\}|%[0-9A-F]{2})")
_ENDS: Final = "".join(map(chr, range(0x21)))  # what parsers take away from both ends
_DROPPED: Final = dict.fromkeys(map(ord, "\t\n\r"))  # and from everywhere
_ONWARD: Final = ("x", "/x", "//x", "0", "2F", "=x", "1]/", ":1]/")  # how a URI may go on
_DOTS: Final = frozenset({".", ".."})


class MalformedUri(ValueError):
    """A URI without a normal form: the sentence says why, and what to write."""


def normal(uri: str) -> str:
    """The spelling that is sent on. Raises MalformedUri."""
    return _normal(uri) if len(uri) <= _KEPT_CHARS_MAX else _normal.__wrapped__(uri)


def ruled(uri: str) -> str:
    """What rules and quarantines see of a URI or of a template: its normal form, with its host in lower case, as
    some servers read it, and with braces. Total: what has no normal form, and was listed all the same, is escaped.
    """
    try:
        found = normal(uri)
    except MalformedUri:
        found = _put_right(uri)
    found = _shown_braces(found)
    host = _HOST.fullmatch(found)
    if host is None:
        return found
    lower = "".join(part if part[:1] in ("{", "%") else part.lower() for part in _EXPRESSION.split(host[2]))
    return f"{host[1]}{lower}{host[3]}"


def is_uri(text: str) -> bool:
    """Whether some reader may take it for one: with a scheme, whatever stands before that."""
    return _PARTS.fullmatch(text.strip(_ENDS).translate(_DROPPED)) is not None


def unlike_any(text: str, *, is_whole: bool) -> str:
    """How a text that a rule compares URIs with must be written to be like any; "" where it may be. `is_whole`: else it
    is only how one begins.
    """
    if _PARTS.fullmatch(text) is None:
        return inside(text)
    written = ruled(text)
    if written == text or (not is_whole and any(ruled(text + more) == text + more for more in _ONWARD)):
        return ""
    return written


def inside(text: str) -> str:
    """The same of a text that may stand anywhere in a URI."""
    written = _shown_braces(_escaped(_NOT_IN_TEXT, text))
    return "" if written == text else written


@lru_cache(KEPT_MAX)
def _normal(uri: str) -> str:
    if (unfit := _UNFIT.search(uri)) is not None:
        named = "a backslash" if unfit[0] == "\\" else f"U+{ord(unfit[0]):04X}"
        raise MalformedUri(f"it holds {named}, which no URI may hold: escape it as %XX, or leave it out")
    if _BAD_ESCAPE.search(uri) is not None:
        raise MalformedUri("a % stands before something other than two hex digits: write %25 for the sign itself")
    parts = _PARTS.fullmatch(uri)
    if parts is None:
        raise MalformedUri("it does not begin with a scheme, as in `docs://name`")
    scheme, authority, path = parts[1].lower(), parts[2], parts[3]
    if authority is not None and "@" in authority:
        raise MalformedUri("it names a user before its host (`…@`): leave that out")
    authority, path = _placed(scheme, authority, _escaped(_NOT_IN_PATH, path))
    host = _host_and_port(scheme, authority) if authority else ""
    if path.startswith("/"):
        path = _without_dots(path)
    elif authority is None and not _DOTS.isdisjoint(path.split("/")):
        raise MalformedUri("it has a step `.` or `..` in a path that begins nowhere: write the path without")
    if not host and path.startswith("//"):
        raise MalformedUri("it has an empty host, and a path that begins with two slashes: write one")
    return f"{scheme}:{'' if authority is None else '//'}{host}{path}{_tail(parts[4], parts[5])}"


def _placed(scheme: str, authority: str | None, path: str) -> tuple[str | None, str]:
    """(authority, path), where parsers find one in the path."""
    if scheme in PORTS:
        if not authority:
            raise MalformedUri(f"it has no host: write `{scheme}://host/path`")
        return authority, path or "/"
    if scheme == "file":
        if not authority and not path.startswith("/"):
            raise MalformedUri("its path begins nowhere: write `file:///path`")
        return authority or "", path or "/"
    return (authority, path) if path and not path.startswith("/") else (authority or "", path)


def _host_and_port(scheme: str, authority: str) -> str:
    if authority.startswith("["):
        return _bracketed(scheme, authority)
    host, colon, port = authority.partition(":")
    host = _escaped(_NOT_IN_HOST, host)
    if scheme in PORTS or scheme == "file":
        host = _of_network(host.lower())
    if port and not host:
        raise MalformedUri("it has a port and no host")
    if not (port.isascii() and port.isdigit()):
        if scheme in PORTS and colon and port:
            raise MalformedUri("its port is no number")
        return f"{host}:{_escaped(_NOT_IN_PATH, port)}" if port else _unless_this_one(scheme, host)
    return f"{host}{_port(scheme, port)}"


def _bracketed(scheme: str, authority: str) -> str:
    found = _IN_BRACKETS.fullmatch(authority)
    try:
        address = IPv6Address(found[1] if found else "")
    except AddressValueError:
        raise MalformedUri("what stands in brackets is no IPv6 address") from None
    assert found is not None
    # an embedded IPv4 address as parsers write it: in hex
    return f"[{IPv6Address(int(address)).compressed}]{_port(scheme, found[2] or '')}"


def _port(scheme: str, digits: str) -> str:
    bare = digits.lstrip("0") or digits[:1]
    if len(bare) > 5:
        raise MalformedUri("its port is no port")
    return f":{bare}" if bare and int(bare) != PORTS.get(scheme, -1) else ""


def _of_network(host: str) -> str:
    """A host that parsers look at closely: letters beyond ASCII, escapes and odd numbers become other hosts."""
    if _NETWORK_NAME.fullmatch(host) is None:
        raise MalformedUri("its host holds more than plain ASCII: write it as DNS has it, `xn--…`")
    if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise MalformedUri("its host is a number that is no IPv4 address: write four decimal numbers") from None
    return host


def _unless_this_one(scheme: str, host: str) -> str:
    return "" if scheme == "file" and host == "localhost" else host


def _escaped(unfit: re.Pattern[str], text: str) -> str:
    """Escapes of what needs none undone, all others in capitals; what a URI does not hold, escaped."""
    return unfit.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    told = found[0]
    if told[0] != "%" or len(told) != 3:
        return "".join(f"%{byte:02X}" for byte in told.encode("utf-8", "replace"))
    meant = chr(int(told[1:], 16))
    return meant if meant in _UNRESERVED else told.upper()


def _without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4, of a path that begins with a slash."""
    kept: list[str] = []
    steps = path.split("/")[1:]
    for step in steps:
        if step == "..":
            del kept[-1:]
        elif step != ".":
            kept.append(step)
    if steps[-1] in _DOTS:
        kept.append("")
    return "/" + "/".join(kept)


def _tail(query: str | None, fragment: str | None) -> str:
    """Empty ones are as good as none: some parsers drop them."""
    told = f"?{_escaped(_NOT_IN_QUERY, query)}" if query else ""
    return f"{told}#{_escaped(_NOT_IN_QUERY, fragment)}" if fragment else told


def _put_right(uri: str) -> str:
    """Of what has no normal form: the same for what parsers read alike, as far as that can be told."""
    bare = uri.strip(_ENDS).translate(_DROPPED)
    bare = _UNFIT.sub(_escape, _BAD_ESCAPE.sub("%25", bare))
    user, bare = _without_user(bare)
    if (parts := _PARTS.fullmatch(bare)) is None:
        return _ESCAPED_ONLY.sub(_escape, bare)
    for spelt in (bare, _escaped(_NOT_IN_TEXT, f"{parts[1].lower()}{bare[len(parts[1]) :]}")):
        found = spelt
        with suppress(MalformedUri):
            found = normal(spelt)
            break
    return found.replace("://", f"://{user}@", 1) if user else found


def _without_user(uri: str) -> tuple[str, str]:
    """(what stands before the host, the rest)."""
    parts = _PARTS.fullmatch(uri)
    if parts is None or "@" not in (parts[2] or ""):
        return "", uri
    user, _, host = parts[2].rpartition("@")
    return _escaped(_NOT_IN_PATH, user.removesuffix(":")), f"{uri[: parts.start(2)]}{host}{uri[parts.end(2) :]}"


def _shown_braces(uri: str) -> str:
    return uri.replace("%7B", "{").replace("%7D", "}")
