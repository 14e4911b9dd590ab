"""Releasing bundles: check, sign, append; roll back; and find a bundle's bytes in the log again.

One writer per tenant: with Kafka the log fences an earlier one. A release whose append has an unknown outcome may
exist, so its number is never used again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tidegate.errors import BundleFault, LogUnavailable, Problem
from tidegate.events import BundleReleased
from tidegate.log.port import EventLog
from tidegate.policy.bundle import Bundle
from tidegate.policy.check import check_bundle
from tidegate.policy.release import RING, STATE_TOPIC, Chunks, records_for_release
from tidegate.policy.signing import Release, SigningKey
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.state import ControlPlane

Cause = Literal["published", "rolled-back"]
_READ_BATCH = 64
_READ_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Published:
    """The release that rules now, whether it was made now, and what is worth a look in the bundle."""

    release: BundleReleased
    created: bool
    problems: list[Problem]


class Publisher:
    """Makes releases."""

    def __init__(
        self,
        state: ControlPlane,
        journal: Journal,
        log: EventLog,
        key: SigningKey,
        region: str,
        clock: Callable[[], int],
    ) -> None:
        self._state = state
        self._journal = journal
        self._log = log
        self._key = key
        self._region = region
        self._clock = clock
        self._spent: dict[str, int] = {}  # by ring: the highest number ever signed here
        self._recent: Bundle | None = None

    def current(self, ring: str) -> BundleReleased | None:
        """What the ring points at."""
        return self._state.current(ring)

    def was_released(self, ring: str, digest: str) -> bool:
        """Whether some release of the ring had this bundle, ruling or not."""
        return any(release.digest == digest for release in self._state.listed(ring))

    async def publish(self, bundle: Bundle, ring: str, actor: str) -> Published:
        """Point the ring at this bundle; what rules already is not released again.

        Raises BundleFault with the problems of a bundle that may not rule, LogUnavailable where it could not be stored.
        """
        check_ring(ring)
        problems = await asyncio.to_thread(check_bundle, bundle, self._state.tool_facts())
        if fatal := [problem for problem in problems if problem.fatal]:
            raise BundleFault(
                f"the bundle has {len(fatal)} problem(s), as `tidegate bundle check` lists; the first: {fatal[0]}",
                problems=problems,
            )
        async with self._journal.turn:
            current = self._state.current(ring)
            if current is not None and current.digest == bundle.digest:
                return Published(current, False, problems)
            return Published(await self._release(bundle, ring, actor, "published"), True, problems)

    async def roll_back(self, ring: str, to: int | str, actor: str) -> BundleReleased:
        """A new release of the bundle that release `to` (a number, or a digest) of this ring had."""
        check_ring(ring)
        target = self._find(ring, to)
        bundle = await self.bundle(target.digest)
        async with self._journal.turn:
            current = self._state.current(ring)
            if current is not None and current.digest == target.digest:
                raise ApiFault(
                    409, "already-current", f"the bundle {target.digest[:12]} rules the ring '{ring}' already"
                )
            return await self._release(bundle, ring, actor, "rolled-back")

    async def bundle(self, digest: str) -> Bundle:
        """A bundle that was released, read from the log and checked against its digest."""
        if self._recent is not None and self._recent.digest == digest:
            return self._recent
        if not any(release.digest == digest for release in self._state.listed()):
            raise ApiFault(
                404,
                "bundle-unknown",
                "no bundle with this digest was ever released; `tidegate bundle list` shows which were",
            )
        canonical = await self._read(digest)
        bundle = Bundle.from_bytes(canonical)
        if bundle.digest != digest:
            raise BundleFault(
                "the log holds other bytes under this digest; publish the bundle again from its directory"
            )
        self._recent = bundle
        return bundle

    async def _release(self, bundle: Bundle, ring: str, actor: str, cause: Cause) -> BundleReleased:
        current = self._state.current(ring)
        number = max(current.number if current else 0, self._spent.get(ring, 0)) + 1
        self._spent[ring] = number
        release = Release(
            tenant=self._state.tenant,
            ring=ring,
            number=number,
            digest=bundle.digest,
            previous=current.digest if current else "",
        )
        signed = self._key.sign(release)
        now_us = self._clock()
        await self._journal.append(
            lambda chain: records_for_release(
                chain, signed, bundle, region=self._region, actor=actor, cause=cause, now_us=now_us
            )
        )
        self._recent = bundle
        return self._state.releases[ring][number]

    def _find(self, ring: str, to: int | str) -> BundleReleased:
        for release in self._state.listed(ring):
            if to in (release.number, release.digest):
                return release
        raise ApiFault(
            404, "release-unknown", f"the ring '{ring}' has no release {to}; `tidegate bundle list` shows them"
        )

    async def _read(self, digest: str) -> bytes:
        """Read `policy-state` from its start to its end for one bundle; rare, so nothing of it is kept in memory."""
        chunks = Chunks()
        prefix = f"{self._state.tenant}|{digest}|".encode()
        deadline = time.monotonic() + _READ_TIMEOUT_S
        subscription = await self._log.follow((STATE_TOPIC,))
        try:
            while (canonical := chunks.whole(digest)) is None:
                records = await subscription.poll(_READ_BATCH, 0.5)
                for record in records:
                    if record.key.startswith(prefix) and record.value is not None:
                        number, _, count = record.key.removeprefix(prefix).decode("ascii", "replace").partition("|")
                        if number.isdecimal() and count.isdecimal():
                            chunks.add(digest, int(number), int(count), record.value, digest)
                if not records and (subscription.caught_up or time.monotonic() > deadline):
                    raise LogUnavailable("the bundle's bytes could not be read from the log; try again")
            return canonical
        finally:
            await subscription.close()


def check_ring(ring: str) -> None:
    if not RING.fullmatch(ring):
        raise ApiFault(422, "ring-malformed", "a ring's name is 1 to 64 of a-z, 0-9 and '-', for example 'main'")
