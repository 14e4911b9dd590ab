"""Resource URIs and their templates (RFC 6570), as the gateway routes by them. Pure.

Two servers' equal URIs are told apart by a mark of the server's behind the scheme, which stays:
`ui://app/x` of the server `maps` becomes `ui://maps~app/x`, `urn:a` becomes `urn:maps~a`. `parted` undoes `marked`.

A template is matched by a set of states that moves over the URI once: time grows with its length alone, whatever a
server has put into its template.
"""

import re
from typing import Final

from tidegate.limits import URI_CHARS_MAX

TEMPLATE_CHARS_MAX: Final = 1_024
MARK: Final = "~"
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:(?://)?)(.*)", re.DOTALL)
_MARKED: Final = re.compile(r"([a-z][a-z0-9-]{0,11})~(.*)", re.DOTALL)
_PARTS: Final = re.compile(r"\{([^{}]+)\}|([^{}]+)|(.)", re.DOTALL)
_OPERATORS: Final = "+#./;?&"
_NOT_IN: Final = {"": "/", "+": "", "#": "", ".": "/", "/": "?#", ";": "/?#", "?": "#", "&": "#"}
"""What a variable's value does not hold, by its expression's operator; `{x}` matches as the SDKs' servers do."""


def marked(server: str, uri: str) -> str:
    """The URI (or template) as it is shown where another server has the same; itself where it names no scheme."""
    found = _SCHEME.fullmatch(uri)
    return f"{found[1]}{server}{MARK}{found[2]}" if found else uri


def parted(uri: str) -> tuple[str, str] | None:
    """(server, its own URI) of what `marked` made. Whether there is such a server, the caller knows."""
    found = _SCHEME.fullmatch(uri)
    mark = _MARKED.fullmatch(found[2]) if found else None
    return (mark[1], f"{found[1]}{mark[2]}") if found and mark else None


class Template:
    """A compiled template. Elements are characters or runs of characters; state i: the first i elements are done."""

    def __init__(self, elements: list[tuple[str | None, str]], runs: set[int], skips: dict[int, int]) -> None:
        """`elements`: (the character, "") or (None, the characters that a run does not hold). `skips`: from an element
        to that behind an optional group.
        """
        self._literals: dict[str, int] = {}
        self._barred: dict[str, int] = {}
        self._wild = 0
        for index, (literal, barred) in enumerate(elements):
            bit = 2 << index
            if literal is not None:
                self._literals[literal] = self._literals.get(literal, 0) | bit
            else:
                self._wild |= bit
                for character in barred:
                    self._barred[character] = self._barred.get(character, 0) | bit
        self._loops = sum(2 << index for index in runs)
        by_length: dict[int, int] = {}
        for start, end in skips.items():
            by_length[end - start] = by_length.get(end - start, 0) | (1 << start)
        self._skips = tuple(by_length.items())
        self._done = 1 << len(elements)
        self.prefix = "".join(self._leading(elements, skips))
        self.weight = sum(literal is not None for literal, _ in elements)

    @staticmethod
    def _leading(elements: list[tuple[str | None, str]], skips: dict[int, int]) -> list[str]:
        found: list[str] = []
        for index, (literal, _) in enumerate(elements):
            if literal is None or index in skips:
                break
            found.append(literal)
        return found

    def matches(self, uri: str) -> bool:
        """Whether some values make this URI of the template."""
        if len(uri) > URI_CHARS_MAX or not uri.startswith(self.prefix):
            return False
        states = self._skipped(1)
        for character in uri:
            takes = self._literals.get(character, 0) | (self._wild & ~self._barred.get(character, 0))
            states = self._skipped(((states << 1) | (states & self._loops)) & takes)
            if not states:
                return False
        return bool(states & self._done)

    def _skipped(self, states: int) -> int:
        while True:
            more = states
            for length, starts in self._skips:
                more |= (states & starts) << length
            if more == states:
                return states
            states = more


def compiled(template: str) -> Template | None:
    """None for what is not a template: braces that do not pair, an unknown operator, or too long."""
    if len(template) > TEMPLATE_CHARS_MAX:
        return None
    elements: list[tuple[str | None, str]] = []
    runs: set[int] = set()
    skips: dict[int, int] = {}
    for expression, literal, stray in _PARTS.findall(template):
        if stray:
            return None
        if literal:
            elements += [(character, "") for character in literal]
            continue
        operator = expression[0] if expression[0] in _OPERATORS else ""
        if not operator and not (expression[0].isalnum() or expression[0] in "_%"):
            return None
        start = len(elements)
        if operator not in ("", "+"):  # the operator's character, then perhaps a value; or nothing at all
            elements.append((operator, ""))
            skips[start] = start + 2
            skips[start + 1] = start + 2
        runs.add(len(elements))
        elements.append((None, _NOT_IN[operator]))
    return Template(elements, runs, skips)
