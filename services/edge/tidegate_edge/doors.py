"""What is behind each door: "" is /mcp, `files` is /mcp/files, `sets/x` is /mcp/sets/x. Pure; made anew with each
catalogue.

At a server's own door everything has the server's own names. At the others tools and prompts are named by
`naming.py`; resources keep their URIs, but for those that two servers share.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidegate.settings import Naming, Settings, SetTool, Toolset
from tidegate_edge.messages import decode_fields, encode
from tidegate_edge.naming import Names, apart, name_all
from tidegate_edge.shelves import Item, Shelf
from tidegate_edge.uris import Template, compiled, marked, parted

SETS = "sets/"


@dataclass(frozen=True)
class Plan:
    """What the configuration says of doors."""

    naming: Naming = field(default_factory=Naming)
    sets: Mapping[str, Toolset] = field(default_factory=dict)
    order: tuple[str, ...] = ()  # the servers, as they stand in the file

    @staticmethod
    def of(settings: Settings) -> "Plan":
        return Plan(settings.naming, settings.sets, tuple(settings.servers))


@dataclass(frozen=True)
class Door:
    """Everything at one door, by the name or URI that is shown there, sorted by server and own name."""

    servers: tuple[str, ...] = ()
    tools: Mapping[str, Item] = field(default_factory=dict)
    prompts: Mapping[str, Item] = field(default_factory=dict)
    resources: Mapping[str, Item] = field(default_factory=dict)
    templates: Mapping[str, Item] = field(default_factory=dict)
    readers: frozenset[str] = frozenset()  # servers whose resources are read here
    shared: frozenset[str] = frozenset()  # URIs and templates of several servers: shown with a mark only
    matchers: tuple[tuple[Template, Item], ...] = ()  # of templates that are shown as they are; the most exact first
    toolset: Toolset | None = None

    @property
    def merges(self) -> bool:
        """Whether URIs may need a mark."""
        return len(self.readers) > 1


EMPTY = Door()


@dataclass(frozen=True)
class Doors:
    by_path: Mapping[str, Door]
    tools: tuple[Item, ...]  # of all servers, with the names they have at /mcp
    troubles: Mapping[str, str]  # what is configured and cannot be shown: a short name → a sentence


def open_doors(shelves: Mapping[str, Shelf], plan: Plan) -> Doors:
    """All doors over these shelves."""
    troubles: dict[str, str] = {}
    ordered = [shelf for _, shelf in sorted(shelves.items())]
    found = {shelf.server: _own_door(shelf) for shelf in ordered}
    whole, tools = _whole(ordered, plan, troubles)
    by_path = {"": whole, **found}
    for name, toolset in plan.sets.items():
        by_path[SETS + name] = _set_door(name, toolset, shelves, plan, troubles)
    return Doors(by_path, tools, troubles)


def _own_door(shelf: Shelf) -> Door:
    return Door(
        servers=(shelf.server,),
        tools={item.name: item for item in shelf.tools},
        prompts={item.name: item for item in shelf.prompts},
        resources={item.name: item for item in shelf.resources},
        templates={item.name: item for item in shelf.templates},
        readers=frozenset({shelf.server} if shelf.readable else ()),
        matchers=_matchers(shelf.templates),
    )


def _whole(shelves: Sequence[Shelf], plan: Plan, troubles: dict[str, str]) -> tuple[Door, tuple[Item, ...]]:
    every = [item for shelf in shelves for item in shelf.tools]
    names = name_all(plan.naming, ((item.server, item.name) for item in every), plan.order)
    tools = [msgspec.structs.replace(item, exposed=names.shown.get((item.server, item.name), "")) for item in every]
    every = [item for shelf in shelves for item in shelf.prompts]
    prompt_names = name_all(plan.naming, ((item.server, item.name) for item in every), plan.order)
    _tell_lost("tool", names, troubles)
    _tell_lost("prompt", prompt_names, troubles)
    door = Door(
        servers=tuple(shelf.server for shelf in shelves),
        tools={item.exposed: item for item in tools if item.exposed},
        prompts=_shown(every, prompt_names),
        **_resources([shelf for shelf in shelves if shelf.readable]),
    )
    return door, tuple(tools)


def _tell_lost(kind: str, names: Names, troubles: dict[str, str]) -> None:
    for server, name in names.lost:
        troubles[f"{kind} {server}/{name}"] = (
            f"the {kind} {name} of {server} is not shown at /mcp, since another one has its name there; "
            "name it under naming.names, or set naming.prefix"
        )


def _shown(items: Iterable[Item], names: Names) -> dict[str, Item]:
    return {
        shown: msgspec.structs.replace(item, exposed=shown)
        for item in items
        if (shown := names.shown.get((item.server, item.name)))
    }


def _set_door(name: str, toolset: Toolset, shelves: Mapping[str, Shelf], plan: Plan, troubles: dict[str, str]) -> Door:
    tools: list[Item] = []
    for chosen in toolset.tools:
        shelf = shelves.get(chosen.server)
        item = next((item for item in shelf.tools if item.name == chosen.tool), None) if shelf else None
        if item is not None:
            tools.append(_chosen(item, chosen))
        else:
            troubles[f"tool {chosen.server}/{chosen.tool} of set {name}"] = (
                f"the set {name} wants the tool {chosen.tool}, which {chosen.server} does not have"
                if shelf
                else f"the set {name} wants the tool {chosen.tool} of {chosen.server}, which has not told its tools yet"
            )
    prompts = [item for server in sorted(set(toolset.prompts)) if server in shelves for item in shelves[server].prompts]
    rules = msgspec.structs.replace(plan.naming, prefix="collision")
    names = name_all(rules, ((item.server, item.name) for item in prompts), plan.order)
    readable = [shelves[one] for one in sorted(set(toolset.resources)) if one in shelves and shelves[one].readable]
    involved = {*(item.server for item in tools), *toolset.prompts, *toolset.resources}
    return Door(
        servers=tuple(sorted(involved & shelves.keys())),
        tools={item.exposed: item for item in sorted(tools, key=lambda item: (item.server, item.name, item.exposed))},
        prompts=_shown(prompts, names),
        **_resources(readable),
        toolset=toolset,
    )


def _chosen(item: Item, chosen: SetTool) -> Item:
    """A tool as a set has it: its fixed arguments are not in the schema that is shown."""
    if not chosen.arguments:
        return msgspec.structs.replace(item, exposed=chosen.shown)
    schema = decode_fields(item.fields["inputSchema"])
    properties = _object(schema.get("properties"))
    if properties:
        left = {key: value for key, value in properties.items() if key not in chosen.arguments}
        schema["properties"] = msgspec.Raw(encode(left))
    if "required" in schema:
        required = msgspec.json.decode(schema["required"])
        if isinstance(required, list):
            still = [key for key in required if key not in chosen.arguments]
            schema["required"] = msgspec.Raw(encode(still))
            if not still:  # older JSON Schema drafts allow no empty list
                del schema["required"]
    raw = encode(schema)
    asks_for_headers = any(path[0] not in chosen.arguments for path in item.param_headers)
    return msgspec.structs.replace(
        item,
        exposed=chosen.shown,
        fields={**item.fields, "inputSchema": msgspec.Raw(raw)},
        input_schema=msgspec.json.decode(raw) if asks_for_headers else None,
        fixed={key: msgspec.Raw(encode(value)) for key, value in chosen.arguments.items()},
    )


def _object(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw]:
    try:
        return decode_fields(raw) if raw is not None else {}
    except msgspec.DecodeError:
        return {}


def _resources(shelves: Sequence[Shelf]) -> dict[str, Any]:
    """The parts of a door that are about resources."""
    readers = frozenset(shelf.server for shelf in shelves)
    resources = [item for shelf in shelves for item in shelf.resources]
    templates = [item for shelf in shelves for item in shelf.templates]
    shown, shared = _marked_apart(resources, readers)
    shown_templates, shared_templates = _marked_apart(templates, readers)
    return {
        "readers": readers,
        "resources": {item.exposed: item for item in shown},
        "templates": {item.exposed: item for item in shown_templates},
        "shared": shared | shared_templates,
        "matchers": _matchers([item for item in shown_templates if item.exposed == item.name]),
    }


def _marked_apart(items: Sequence[Item], readers: frozenset[str]) -> tuple[list[Item], frozenset[str]]:
    """Each under the URI that is shown, and the URIs that several have. Without a scheme to put a mark behind, the
    first one stays.
    """
    count = Counter(item.name for item in items)
    plain = {(item.server, item.name): _plain(item, readers) for item in items}
    shown = apart(plain, lambda key: marked(*key))
    kept: dict[str, Item] = {}
    for item in items:
        uri = shown[item.server, item.name]
        kept.setdefault(uri, item if uri == item.exposed else msgspec.structs.replace(item, exposed=uri))
    return list(kept.values()), frozenset(uri for uri, times in count.items() if times > 1)


def _plain(item: Item, readers: frozenset[str]) -> str:
    """A URI that looks as if it carried a mark gets one: so a mark is always ours."""
    part = parted(item.name) if len(readers) > 1 else None
    return marked(item.server, item.name) if part and part[0] in readers else item.name


def _matchers(templates: Iterable[Item]) -> tuple[tuple[Template, Item], ...]:
    found = [(template, item) for item in templates if (template := compiled(item.name)) is not None]
    return tuple(sorted(found, key=lambda pair: (-pair[0].weight, pair[1].server, pair[1].name)))
