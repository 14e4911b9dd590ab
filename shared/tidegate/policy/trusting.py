"""Which definition of each tool is trusted: the last one that was approved, else the first that was ever recorded. A
fold of the history `catalog`, the same on every edge and in the policy service; and the judgement on what a server
offers now. Pure; folding twice is folding once. What an edge has recorded may reach the log after what another one saw
later: the time of an event counts.

A tool that comes more than FIRST_LIST_US after its server's first one is not of the first list: it is `later`. What a
withdrawn tool was trusted for stays, so that it cannot come back as something else: the first NAMES_MAX names of a
server are never forgotten, and what it offers under further ones is a `stranger`, trusted only once it is approved.
Counterparts: `definitions.py` compares, `definition_rules.py` says what follows.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

import msgspec

from tidegate.events import AnyEvent, Rank, ToolApproved, ToolDefined, ToolHeld, ToolWithdrawn
from tidegate.limits import TOOLS_PER_SERVER_MAX
from tidegate.policy.definition_rules import Action, Rules, stricter
from tidegate.policy.definitions import Change, Comparison, compare, graver

FIRST_LIST_US: Final = 5_000_000  # edges that see a server for the first time record its list within this time
KEPT_MAX: Final = 3  # definitions of a tool: the trusted one, the one that is offered, and one before
NAMES_MAX: Final = 2 * TOOLS_PER_SERVER_MAX  # of a server: those that are trusted on first use, and as many strangers
TOLD_MAX: Final = 50_000
COMPARED_MAX: Final = 50_000
COMPARED_CHARS_MAX: Final = 64 * 1024 * 1024  # that comparisons which are remembered have to say
SENTENCES_MAX: Final = 20  # of a judgement, in an event

State = Literal["trusted", "new", "changed", "held"]


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """One tool, as its events tell. Digests name definitions; `definitions` holds the trusted and the latest ones."""

    server: str
    tool: str
    first: str  # digest of the first definition that was ever recorded; "" of a stranger
    later: bool  # it came after its server's first list
    current: str  # digest of the definition recorded last; "": withdrawn
    since_us: int  # since when it is that, or withdrawn
    approved: str = ""  # digest of the last definition that was approved
    approval: ToolApproved | None = None
    definitions: dict[str, bytes] = {}

    @property
    def trusted(self) -> str:
        return self.approved or self.first

    @property
    def is_stranger(self) -> bool:
        """It came when its server had used up its names: what it was before, if anything, nobody knows."""
        return not self.first


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What follows for a tool. `trusted`: digest of the definition compared with; "" where there is none."""

    server: str
    tool: str
    digest: str
    trusted: str
    state: State
    action: Action
    rank: Rank | None
    changes: tuple[Change, ...] = ()
    pending: bool = False  # not compared yet: as careful as can be, and not to be told

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(change.sentence for change in self.changes[:SENTENCES_MAX])

    @property
    def sentence(self) -> str:
        """For the operator."""
        what = "has changed" if self.trusted else "is new"
        rank = f" ({self.rank})" if self.rank not in (None, "new") else ""
        follows = "is held until somebody approves it" if self.action == "hold" else "is worth a look"
        gravest = f" {self.changes[0].sentence}" if self.changes else ""
        return f"The definition of {self.server}/{self.tool} {what}{rank} and {follows}.{gravest}"


class Snapshot(msgspec.Struct, frozen=True):
    """All that a fold knows, so that another one begins with it."""

    tools: tuple[Known, ...]  # of each server, the longest known first
    first_us: dict[str, int]
    told: tuple[tuple[str, str, str, str, str], ...]


class Trusting:
    """Of one tenant. Bounded by server: no flood of names costs another server anything, or this one a pin."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._tools: dict[str, dict[str, Known]] = {}
        self._strangers: dict[str, dict[str, Known]] = {}  # those that are offered, and those that were approved
        self._first_us: dict[str, int] = {}
        self._told: OrderedDict[tuple[str, str, str, str, str], None] = OrderedDict()

    def apply(self, event: AnyEvent) -> tuple[str, str] | None:
        """Fold one event in. (server, tool) where what is trusted, or offered, may be another now."""
        if isinstance(event, ToolHeld):
            self._note(event)
            return None
        if not isinstance(event, ToolDefined | ToolWithdrawn | ToolApproved) or event.tenant != self._tenant:
            return None
        before = self.of(event.server, event.tool)
        after = self._after(before, event)
        if after is None or after == before:
            return None
        self._keep(after)
        return event.server, event.tool

    def snapshot(self) -> Snapshot:
        tools = tuple(known for kept in (self._tools, self._strangers) for by in kept.values() for known in by.values())
        return Snapshot(tools, dict(self._first_us), tuple(self._told))

    def restore(self, snapshot: Snapshot) -> None:
        """Know what another fold of the history knew, and what this one has read of it. The history may be folded in
        after, from its start.
        """
        read = self.snapshot()
        self._tools, self._strangers = {}, {}
        for known in snapshot.tools:
            self._keep(known)
        for known in read.tools:
            before = self.of(known.server, known.tool)
            self._keep(known if before is None else _joined(before, known))
        self._first_us = {**read.first_us, **snapshot.first_us}
        self._told = OrderedDict.fromkeys((*snapshot.told, *read.told)[-TOLD_MAX:])

    def of(self, server: str, tool: str) -> Known | None:
        tools = self._tools.get(server)
        known = tools.get(tool) if tools else None
        if known is None and (strangers := self._strangers.get(server)):
            return strangers.get(tool)
        return known

    def all(self, server: str = "") -> Iterator[Known]:
        """By server and tool."""
        for name in sorted(self._tools) if not server else [server]:
            tools = {**self._tools.get(name, {}), **self._strangers.get(name, {})}
            yield from (tools[tool] for tool in sorted(tools))

    def is_full(self, server: str) -> bool:
        """Whether a tool of it that nobody knows is a stranger. Once it is so it stays so."""
        tools = self._tools.get(server)
        return tools is not None and len(tools) >= NAMES_MAX

    def is_later(self, server: str, at_us: int) -> bool:
        """Whether a tool that nobody knows comes after its server's first list."""
        first_us = self._first_us.get(server)
        return first_us is not None and at_us > first_us + FIRST_LIST_US

    def is_told(self, tenant: str, judgement: Judgement) -> bool:
        """Whether an edge has recorded it already."""
        return (tenant, judgement.server, judgement.tool, judgement.digest, judgement.action) in self._told

    def _keep(self, known: Known) -> None:
        if not known.is_stranger:
            self._tools.setdefault(known.server, {})[known.tool] = known
            return
        strangers = self._strangers.setdefault(known.server, {})
        strangers[known.tool] = known
        if not known.current and not known.approved:
            del strangers[known.tool]
        elif len(strangers) > NAMES_MAX:  # what was only seen goes first, then what is known longest
            del strangers[next((name for name, one in strangers.items() if not one.approved), next(iter(strangers)))]

    def _note(self, event: ToolHeld) -> None:
        self._told[event.tenant, event.server, event.tool, event.digest, event.action] = None
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)

    def _after(self, known: Known | None, event: ToolDefined | ToolWithdrawn | ToolApproved) -> Known | None:
        if isinstance(event, ToolDefined):
            return self._defined(known, event)
        if known is None:
            return self._approved_unseen(event) if isinstance(event, ToolApproved) else None
        if isinstance(event, ToolWithdrawn):
            trusted = {digest: raw for digest, raw in known.definitions.items() if digest == known.trusted}
            gone = msgspec.structs.replace(known, current="", since_us=event.time_us, definitions=trusted)
            return gone if known.current and event.time_us >= known.since_us else known
        if known.approval is not None and event.time_us < known.approval.time_us:
            return known
        return msgspec.structs.replace(known, approved=event.digest, approval=event)

    def _approved_unseen(self, event: ToolApproved) -> Known | None:
        """A stranger that was withdrawn while somebody approved it."""
        if not self.is_full(event.server):
            return None
        one = Known(server=event.server, tool=event.tool, first="", later=True, current="", since_us=0)
        return msgspec.structs.replace(one, approved=event.digest, approval=event)

    def _defined(self, known: Known | None, event: ToolDefined) -> Known:
        definition = bytes(event.definition)
        if known is None:
            later = self.is_later(event.server, event.time_us)
            self._first_us.setdefault(event.server, event.time_us)
            return Known(
                server=event.server,
                tool=event.tool,
                first="" if self.is_full(event.server) else event.digest,
                later=later,
                current=event.digest,
                since_us=event.time_us,
                definitions={event.digest: definition},
            )
        if event.digest == known.current or event.time_us < known.since_us:
            return known
        kept = {digest: raw for digest, raw in known.definitions.items() if digest != event.digest}
        kept[event.digest] = definition
        spare = [digest for digest in kept if digest not in (known.trusted, event.digest)]
        for digest in spare[: max(0, len(kept) - KEPT_MAX)]:
            del kept[digest]
        return msgspec.structs.replace(known, current=event.digest, since_us=event.time_us, definitions=kept)


def _joined(known: Known, read: Known) -> Known:
    """One tool, as two folds of its history know it. What comes later in it counts; `read` where that is not told."""
    latest = known if known.since_us > read.since_us else read
    of, one = known.approval, read.approval
    approved = known if one is None or (of is not None and of.time_us > one.time_us) else read
    now = msgspec.structs.replace(
        known,
        current=latest.current,
        since_us=latest.since_us,
        approved=approved.approved,
        approval=approved.approval,
    )
    there = {**known.definitions, **read.definitions}
    wanted = dict.fromkeys((now.trusted, now.current, *latest.definitions))
    chosen = [digest for digest in wanted if digest in there][:KEPT_MAX]
    return msgspec.structs.replace(now, definitions={digest: there[digest] for digest in chosen})


class Judge:
    """Judges definitions; remembers comparisons, for most definitions are looked at again and again."""

    def __init__(
        self,
        lock: AbstractContextManager[object] | None = None,
        *,
        brief: bool = False,
        chars_max: int = COMPARED_CHARS_MAX,
    ) -> None:
        """`brief`: only the sentences of what changed are kept, not its two sides. `lock`: of threads that share it."""
        self._brief = brief
        self._chars_max = chars_max
        self._compared: OrderedDict[tuple[str, str], Comparison] = OrderedDict()  # the one asked for last is last
        self._chars = 0
        self._lock = lock or nullcontext()  # never held while comparing

    def compare(
        self, trusted: str, before: bytes | None, digest: str, now: Callable[[], bytes], *, compares: bool = True
    ) -> Comparison:
        """As `definitions.compare`, by digest. `trusted` "": nothing to compare with. `now` is asked only if needed.
        `compares` False: what was not compared before is PENDING, which is as grave as it can be.
        """
        if trusted == digest:
            return Comparison(None)
        key = (trusted, digest)
        found = self._remembered(key)
        if found is None:
            if trusted and before is None:
                told = "The trusted definition is not kept any more, so it cannot be told what differs."
                return Comparison("widened", (Change("widened", "", "", "", told),))
            if not compares:
                return PENDING
            found = compare(before, now())
            found = _briefly(found) if self._brief else found
            self._keep(key, found)
        return found

    def _remembered(self, key: tuple[str, str]) -> Comparison | None:
        with self._lock:
            found = self._compared.get(key)
            if found is not None:
                self._compared.move_to_end(key)
            return found

    def _keep(self, key: tuple[str, str], found: Comparison) -> None:
        with self._lock:
            if key in self._compared:
                return
            self._compared[key] = found
            self._chars += _chars(found)
            while len(self._compared) > COMPARED_MAX or self._chars > self._chars_max:
                self._chars -= _chars(self._compared.popitem(last=False)[1])

    def judge(
        self,
        rules: Rules,
        known: Known | None,
        server: str,
        tool: str,
        digest: str,
        now: Callable[[], bytes],
        *,
        later: bool = False,
        stranger: bool = False,
        compares: bool = True,
    ) -> Judgement:
        """`known` None: nobody has recorded the tool yet; then `later` says whether it came after the first list, and
        `stranger` whether its server had used up its names. `compares` False: in no time; the judgement is `pending`
        where something was not compared before.
        """
        one = (server, tool, digest)
        if known is None or (known.is_stranger and not known.approved):
            fresh = self.compare("", None, digest, now, compares=compares)
            strange = stranger if known is None else known.is_stranger
            return _strange(one, fresh, rules) if strange else _unapproved(one, fresh, rules, later=later)
        trusted = known.definitions.get(known.trusted)
        found = self.compare(known.trusted, trusted, digest, now, compares=compares)
        if known.approved:
            return _changed(one, known.trusted, found, rules)
        first = known.definitions.get(known.first)
        fresh = self.compare("", None, known.first, now if first is None else lambda: first, compares=compares)
        unapproved = _unapproved(one, fresh, rules, later=known.later)
        if found.rank is None:
            return unapproved
        changed = _changed(one, known.trusted, found, rules)
        pending = changed.pending or unapproved.pending
        if unapproved.action != "hold" or changed.action == "hold":
            return msgspec.structs.replace(changed, pending=True) if pending else changed
        rank = graver(fresh.rank or "new", found.rank)  # what is held does not go free by changing a little
        return msgspec.structs.replace(changed, action="hold", state="held", rank=rank, pending=pending)


def _pending() -> Comparison:
    told = "It is being compared with what is trusted, and treated as the gravest until then."
    return Comparison("instructing", (Change("instructing", "", "", "", told),))


PENDING: Final = _pending()
STRANGE: Final = Change(
    "widened",
    "",
    "",
    "",
    f"Its server has had {NAMES_MAX:,} other names before, so it cannot be told what this one was.",
)


def _briefly(found: Comparison) -> Comparison:
    gravest = found.changes[:SENTENCES_MAX]
    left_out = found.left_out + len(found.changes) - len(gravest)
    told = tuple(msgspec.structs.replace(change, before="", after="") for change in gravest)
    return Comparison(found.rank, told, left_out)


def _chars(found: Comparison) -> int:
    return 100 + sum(len(one.path) + len(one.before) + len(one.after) + len(one.sentence) for one in found.changes)


def _unapproved(one: tuple[str, str, str], fresh: Comparison, rules: Rules, *, later: bool) -> Judgement:
    """On a definition that is the first of its tool."""
    action = rules.new if later else rules.first
    if fresh.rank == "instructing":
        action = stricter(action, rules.instructing)
    state: State = "held" if action == "hold" else "trusted" if action == "allow" else "new"
    return _judgement(one, "", state, action, fresh)


def _strange(one: tuple[str, str, str], fresh: Comparison, rules: Rules) -> Judgement:
    """On what came when its server had used up its names: it may have been another tool before, so it has changed."""
    gravest = (*fresh.changes, STRANGE) if fresh.rank == "instructing" else (STRANGE, *fresh.changes)
    rank: Rank = gravest[0].rank
    action = stricter(rules.on(rank), rules.new)
    state: State = "held" if action == "hold" else "changed"
    found = _judgement(one, "", state, action, Comparison(rank, gravest, fresh.left_out))
    return msgspec.structs.replace(found, pending=fresh is PENDING)


def _changed(one: tuple[str, str, str], trusted: str, found: Comparison, rules: Rules) -> Judgement:
    """On a definition in place of a trusted one."""
    if found.rank is None:
        return _judgement(one, trusted, "trusted", "allow", found)
    action = rules.on(found.rank)
    return _judgement(one, trusted, "held" if action == "hold" else "changed", action, found)


def _judgement(one: tuple[str, str, str], trusted: str, state: State, action: Action, found: Comparison) -> Judgement:
    server, tool, digest = one
    return Judgement(
        server=server,
        tool=tool,
        digest=digest,
        trusted=trusted,
        state=state,
        action=action,
        rank=found.rank,
        changes=found.changes,
        pending=found is PENDING,
    )
