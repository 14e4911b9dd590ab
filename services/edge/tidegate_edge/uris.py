"""Resource URIs and their templates (RFC 6570), as the gateway routes by them. Pure.

Two servers' equal URIs are told apart by a mark of the server's behind the scheme, which stays:
`ui://app/x` of the server `maps` becomes `ui://maps~app/x`, `urn:a` becomes `urn:maps~a`. `parted` undoes `marked`.

A template is matched by a set of states that moves over the URI once: time grows with its length alone, whatever a
server has put into its template.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from tidegate.limits import URI_CHARS_MAX

TEMPLATE_CHARS_MAX: Final = 1_024
EXPRESSIONS_MAX: Final = 16  # of one template
WALKED_CHARS_MAX: Final = 16_384  # by one server's templates, for one URI
MARK: Final = "~"
T = TypeVar("T")
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
    """A compiled template: characters and runs, which may be empty. State i: the first i elements are behind us; a run
    holds its own state as long as characters suit it.
    """

    def __init__(
        self, elements: list[str | None], barred: dict[int, str], groups: set[int], *, has_fragment: bool = True
    ) -> None:
        """`elements`: a character each, or None for a run; `barred`: what the run at an index does not hold; `groups`:
        where an expression begins, of two elements, that may be left out whole.
        """
        self._has_fragment = has_fragment  # else one behind a query is nobody's, and is not looked at
        self._literals: dict[str, int] = {}
        self._barred: dict[str, int] = {}
        for index, literal in enumerate(elements):
            if literal is not None:
                self._literals[literal] = self._literals.get(literal, 0) | (2 << index)
        self._runs = sum(1 << index for index in barred)
        for index, characters in barred.items():
            for character in characters:
                self._barred[character] = self._barred.get(character, 0) | (1 << index)
        self._groups = sum(1 << index for index in groups)
        self._done = 1 << len(elements)
        bounds = [index for index, literal in enumerate(elements) if literal is None or index in groups]
        self.prefix = "".join(literal or "" for literal in elements[: min(bounds, default=len(elements))])
        self.weight = len(elements) - len(barred)  # the more of it is fixed, the more exact it is

    def matches(self, uri: str) -> bool:
        """Whether some values make this URI of the template."""
        return self.walked(uri)[0]

    def walked(self, uri: str) -> tuple[bool, int]:
        """(whether it matches, how many characters it took to know)."""
        if len(uri) > URI_CHARS_MAX or not uri.startswith(self.prefix):
            return False, 0
        if not self._has_fragment:
            uri = uri.partition("#")[0]
        states = self._onward(1)
        for index, character in enumerate(uri):
            moved = (states << 1) & self._literals.get(character, 0)
            stayed = states & self._runs & ~self._barred.get(character, 0)
            states = self._onward(moved | stayed)
            if not states:
                return False, index + 1
        return bool(states & self._done), len(uri)

    def _onward(self, states: int) -> int:
        """With the states that are reached without a character: behind a run, behind a group."""
        while True:
            more = states | ((states & self._runs) << 1) | ((states & self._groups) << 2)
            if more == states:
                return states
            states = more


def first_match(matchers: Iterable[tuple[Template, T]], uri: str, owner_of: Callable[[T], str]) -> T | None:
    """The first that matches. Each owner's templates take so many characters at most, then they are passed over: a
    server's own templates must not hold up the others'.
    """
    taken: dict[str, int] = {}
    for template, one in matchers:
        owner = owner_of(one)
        if taken.get(owner, 0) > WALKED_CHARS_MAX:
            continue
        matches, walked = template.walked(uri)
        if matches:
            return one
        if walked:
            taken[owner] = taken.get(owner, 0) + walked
    return None


def compiled(template: str) -> Template | None:
    """None for what is not a template: braces that do not pair, an unknown operator, or too long."""
    if len(template) > TEMPLATE_CHARS_MAX or template.count("{") > EXPRESSIONS_MAX:
        return None
    elements: list[str | None] = []
    barred: dict[int, str] = {}
    groups: set[int] = set()
    for expression, literal, stray in _PARTS.findall(template):
        if stray:
            return None
        if literal:
            elements += literal
            continue
        operator = expression[0] if expression[0] in _OPERATORS else ""
        if not operator and not (expression[0].isalnum() or expression[0] in "_%"):
            return None
        if operator not in ("", "+"):  # the operator's character, then perhaps a value; or nothing at all
            groups.add(len(elements))
            elements.append(operator)
        barred[len(elements)] = _NOT_IN[operator]
        elements.append(None)
    has_query = any(element in ("?", "&") and index in groups for index, element in enumerate(elements))
    return Template(elements, barred, groups, has_fragment=not has_query or "#" in elements)
