"""What the configured servers offer now: each is asked itself, as an edge asks it, with nothing else running.

Counterpart: `bundle_starting.py` makes a schema of it. Rules: every wait is bounded; what was started is stopped.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tidegate.errors import Fault
from tidegate.policy.schema_writing import Offer, OfferedTool
from tidegate.sessions.memory import MemorySessions
from tidegate.settings import Settings
from tidegate_edge.shelves import Item, Shelf, shelve
from tidegate_edge.upstream.port import Upstream
from tidegate_edge.upstream.stdio import StdioUpstream, plan_of
from tidegate_edge.upstream.stdio_kept import Room
from tidegate_edge.wiring import open_http_upstream

ASK_S = 20.0
WAIT_S = 30.0


def ask_servers(settings: Settings) -> tuple[list[Offer], dict[str, str]]:
    """The offers, and why others could not be had, by server: once, however often a process was tried."""
    with _unlogged(logging.getLogger("tidegate_edge")):
        return asyncio.run(_ask_all(settings))


@contextlib.contextmanager
def _unlogged(logger: logging.Logger) -> Iterator[None]:
    """What it would log is in the answer."""
    nowhere, before = logging.NullHandler(), logger.propagate
    logger.addHandler(nowhere)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(nowhere)


async def _ask_all(settings: Settings) -> tuple[list[Offer], dict[str, str]]:
    sessions = MemorySessions(per_subject_max=settings.limits.sessions_per_subject_max)
    await sessions.start()
    try:
        names = sorted(settings.servers)
        found = await asyncio.gather(*(_ask(settings, name, sessions) for name in names))
    finally:
        await sessions.stop()
    answers = dict(zip(names, found, strict=True))
    offers = [answer for answer in answers.values() if isinstance(answer, Offer)]
    return offers, {name: answer for name, answer in answers.items() if isinstance(answer, str)}


async def _ask(settings: Settings, name: str, sessions: MemorySessions) -> Offer | str:
    upstream: Upstream
    if settings.servers[name].command:
        upstream = StdioUpstream(plan_of(settings, name, sessions.address), settings.tenant, Room(2, 2))
    else:
        upstream = open_http_upstream(settings, name, sessions, "tidegate-cli")
    try:
        async with asyncio.timeout(WAIT_S):
            await upstream.start()
            found = await upstream.definitions(ASK_S)
    except Fault as fault:
        return fault.sentence.removeprefix(f"{name}: ")
    except TimeoutError:
        return f"has not told its tools within {WAIT_S:g} s"
    finally:
        await upstream.close()
    if found.partial:
        return "; ".join(found.partial.values())
    by_tool, own = _labels(settings, name)
    return _offer(shelve(name, found, by_tool, own))


def _labels(settings: Settings, name: str) -> tuple[Mapping[str, tuple[str, ...]], tuple[str, ...]]:
    """The operator's labels: by tool, and those of the server itself."""
    own = settings.servers[name].labels
    by_tool: dict[str, tuple[str, ...]] = {}
    for rule in settings.rules:
        if rule.server == name and rule.labels and rule.tool:
            by_tool[rule.tool] = rule.labels
        elif rule.server == name and rule.labels:
            own = (*own, *rule.labels)
    return by_tool, own


def _offer(shelf: Shelf) -> Offer:
    arguments = [argument.get("name") for item in shelf.prompts for argument in _listed(_read(item, "arguments"))]
    return Offer(
        shelf.server,
        shelf.labels,
        tuple(_tool(item) for item in shelf.tools),
        tuple(name for name in arguments if isinstance(name, str)) if shelf.prompts else None,
        bool(shelf.resources or shelf.templates),
    )


def _tool(item: Item) -> OfferedTool:
    schema, notes, told = (_read(item, key) for key in ("inputSchema", "annotations", "description"))
    hints: dict[str, Any] = notes if isinstance(notes, dict) else {}
    return OfferedTool(
        item.name,
        schema if isinstance(schema, dict) else {},
        item.labels,
        told if isinstance(told, str) else "",
        hints.get("readOnlyHint") is True,
    )


def _read(item: Item, key: str) -> Any:
    return msgspec.json.decode(item.fields[key]) if key in item.fields else None


def _listed(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
