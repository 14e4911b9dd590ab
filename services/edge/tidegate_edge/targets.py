"""What a request is about: a tool, a prompt, or a resource, under the client's name for it at a door. Pure.

`Ongoing.arguments` of a tool or a prompt are its arguments; of a resource or a completion, the params themselves with
the upstream's own names, so that what is recorded, decided and inspected is what is sent.
"""

from typing import Any, Final, NamedTuple

import msgspec

from tidegate import json_values
from tidegate.policy.resource_uris import MalformedUri, normal, ruled
from tidegate_edge.accept import Request
from tidegate_edge.calls import EMPTY_OBJECT, NULL, Approved, Ongoing
from tidegate_edge.catalog import Catalog, Item
from tidegate_edge.messages import decode_fields, encode

SUBSCRIBING: Final = frozenset({"resources/subscribe", "resources/unsubscribe"})
GOVERNED: Final = frozenset({"tools/call", "prompts/get", "resources/read", "completion/complete"}) | SUBSCRIBING
CANCEL: Final = "tasks/cancel"
TASK_ASKED: Final = "tasks/get"
TASKS: Final = frozenset({TASK_ASKED, "tasks/update", CANCEL})
SILENT: Final = SUBSCRIBING | {CANCEL}
"""Whose answers tell a client nothing."""
NOT_KEPT: Final = 10**40
"""In the place of an argument that is not known any more: no rule can look at it, and `has` finds it."""
_KINDS: Final = {"tools/call": "tool", "prompts/get": "prompt"}


class Found(NamedTuple):
    """`target` is the upstream's own name or URI."""

    item: Item
    target: str


def kind(method: str) -> str:
    """The kebab-case word for what a method is about, for reasons and sentences."""
    return _KINDS.get(method, "resource")


def named(request: Request) -> str:
    """The client's name for the target; "" where the params have none that is a string."""
    params = request.params
    if request.method == "completion/complete":
        ref = _object(params.get("ref"))
        value = ref.get("name") if ref.get("type") == "ref/prompt" else ref.get("uri")
    else:
        value = params.get("name" if request.method in _KINDS else "uri")
    return value if isinstance(value, str) else ""


class Handle(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task, as a client's handle says once it is opened (`tasks.py`). An edge of the next version must read it."""

    server: str
    tool: str
    task: str  # the server's own id
    root: str  # the call that made it
    v: int = 1
    arguments: dict[str, msgspec.Raw] | None = None  # of that call, as they were decided on; None: nothing is known
    left_out: tuple[str, ...] = ()  # names of arguments that are too large to travel
    approved: Approved | None = None  # that call went on by it

    @property
    def known(self) -> dict[str, Any]:
        """The arguments for rules to look at."""
        kept = {name: json_values.decode(raw) for name, raw in (self.arguments or {}).items()}
        return {**kept, **dict.fromkeys(self.left_out, NOT_KEPT)}


def find(catalog: Catalog, door: str, request: Request, handle: Handle | None = None) -> Found | None:
    """The item that the client means; None where there is none at this door. A task is of the tool that made it."""
    name = named(request)
    if handle is not None:
        item = catalog.find(handle.server, handle.tool)
        return Found(item, item.name) if item and catalog.shows(door, item) else None
    if request.method in TASKS:
        return None
    if request.method == "tools/call":
        item = catalog.find(door, name)
        return Found(item, item.name) if item else None
    if request.method == "prompts/get" or _is_of_prompt(request):
        item = catalog.find_prompt(door, name)
        return Found(item, item.name) if item else None
    listed = catalog.find_template(door, name) if request.method == "completion/complete" else None
    found = listed or (catalog.find_resource(door, name) if name else None)
    return Found(*found) if found else None


def _is_of_prompt(request: Request) -> bool:
    return request.method == "completion/complete" and _object(request.params.get("ref")).get("type") == "ref/prompt"


def malformed(request: Request) -> str:
    """Why the URI that a request names its target by is none; "" where it is one, or the target has a name."""
    if request.method in _KINDS or request.method in TASKS or _is_of_prompt(request):
        return ""
    try:
        normal(named(request))
    except MalformedUri as told:
        return f"The URI is malformed: {told}"
    return ""


def stopped_as(call: Ongoing) -> str:
    """Under which name a quarantine of the target stands."""
    return ruled(call.target) if is_by_uri(call) else call.target


def is_by_uri(call: Ongoing) -> bool:
    """Whether the target is a URI, in the client's words, and not a name out of the catalogue."""
    return call.method not in _KINDS and call.method not in TASKS and not _is_of_prompt(call.request)


def arguments(members: dict[str, msgspec.Raw], request: Request, found: Found | None) -> bytes:
    """As they are decided on, inspected, recorded and forwarded, masking apart."""
    if request.method in _KINDS:
        given = members.get("arguments")
        fixed = found.item.fixed if found else {}
        if not fixed:
            return EMPTY_OBJECT if given is None else bytes(given)
        own = request.params.get("arguments", {})
        return (
            encode({**decode_fields(bytes(given or EMPTY_OBJECT)), **fixed}) if isinstance(own, dict) else bytes(NULL)
        )
    target = found.target if found else named(request)
    if request.method == "completion/complete":
        kept = {key: members[key] for key in ("argument", "context") if key in members}
        return encode({"ref": _ref(request, target), **kept})
    return encode({"uri": target})


def _ref(request: Request, target: str) -> dict[str, Any]:
    ref = _object(request.params.get("ref"))
    return {**ref, "name" if ref.get("type") == "ref/prompt" else "uri": target}


def decided_on(call: Ongoing) -> dict[str, Any] | None:
    """The arguments that rules look at; None where they are no object."""
    if call.task is not None:
        return call.task.known
    if call.method in _KINDS:
        value = call.request.params.get("arguments", {})
        if call.item is not None and call.item.fixed and isinstance(value, dict):
            value = json_values.decode(call.arguments)
        if not isinstance(value, dict):
            return None
        return value if call.method == "tools/call" else {"name": call.target, "arguments": value}
    if _is_of_prompt(call.request):
        return {"name": call.target, "arguments": {}}
    return {"method": call.method} if call.item is not None and call.item.kind == "question" else {"uri": call.target}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
