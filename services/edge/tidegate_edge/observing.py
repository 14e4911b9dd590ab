"""What releases decide here, told to the log: often while a guard watches, ever more rarely where nobody waits for it.

Counterpart: the policy service adds the sums up over edges and judges them. A sum counts since the release got its role
on this edge; what rules beside a guarded canary is told as it stood when the canary came, so that the two can be
compared from there on.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidegate.events import AnyEvent, BundleObserved
from tidegate.ids import now_us
from tidegate.policy.signing import Release
from tidegate_edge.edge import Edge
from tidegate_edge.tallies import Sums, Tally

Make = Callable[[dict[str, Any]], AnyEvent]
Tell = Callable[[str, Make], Awaitable[None]]

LOOK_S: Final = 2.0
CLOSELY_FOR_US: Final = 600_000_000  # a canary stays for days: after so long it is told five times as rarely
RARELY_US: Final = 10_000_000
RAREST_US: Final = 600_000_000


@dataclass(frozen=True)
class Watched:
    """A release whose decisions somebody may want to know; `closely`: a guard waits for them."""

    release: Release
    tally: Tally
    closely: bool


@dataclass
class _Told:
    """What was said last, and when."""

    sums: Sums
    at_us: int


class Observer:
    """Says each sum when it has changed and is due."""

    def __init__(self, edge: Edge, tell: Tell) -> None:
        self._edge = edge
        self._tell = tell
        self._told: dict[tuple[str, str, int], _Told] = {}

    async def look(self, tenant: str, watched: Iterable[Watched]) -> None:
        """Every `LOOK_S`: what is due of a tenant's releases. What is not watched any more is forgotten."""
        listed = list(watched)
        keys = {_key(tenant, one.release) for one in listed}
        self._told = {key: told for key, told in self._told.items() if key[0] != tenant or key in keys}
        for one in listed:
            told = self._told.get(_key(tenant, one.release))
            if is_due(one, told.sums if told else Sums(), told.at_us if told else 0, now_us()):
                await self.say(tenant, one)

    async def say(self, tenant: str, one: Watched) -> None:
        """Now, changed or not."""
        release, sums = one.release, one.tally.sums()
        self._told[_key(tenant, release)] = _Told(sums, now_us())
        await self._tell(
            tenant,
            lambda common: BundleObserved(
                **common,
                edge=self._edge.place.edge,
                ring=release.ring,
                role=release.role,
                number=release.number,
                digest=release.digest,
                since_us=one.tally.since_us,
                **msgspec.structs.asdict(sums),
            ),
        )


def is_due(one: Watched, sums: Sums, told_us: int, at_us: int) -> bool:
    """Whether the sums are to be told now; `sums` and `told_us`: what was told last, and when."""
    if sums.decided == one.tally.decided:
        return False
    age_us = at_us - one.tally.since_us
    if one.closely:
        return age_us < CLOSELY_FOR_US or at_us - told_us >= RARELY_US
    return at_us - told_us >= min(age_us // 2, RAREST_US)


def _key(tenant: str, release: Release) -> tuple[str, str, int]:
    return tenant, release.role, release.number
