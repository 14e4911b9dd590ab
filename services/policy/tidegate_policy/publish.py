"""Releasing bundles: check, sign, append; promote, withdraw, roll back; and find a bundle's bytes in the log again.

One writer per tenant: with Kafka the log fences an earlier one. A release whose append has an unknown outcome may
exist, so its number is never used again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.chain import Chain
from tidegate.errors import BundleFault, LogUnavailable, Problem
from tidegate.events import BundleReleased, Role
from tidegate.log.port import EventLog, Record
from tidegate.policy.bundle import Bundle
from tidegate.policy.check import check_bundle
from tidegate.policy.release import RING, STATE_TOPIC, Cause, Chunks, records_for_release
from tidegate.policy.signing import POINTER_BYTES_MAX, Guard, Release, SigningKey, Stage
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.state import ControlPlane, signer_of, terms_of

_READ_BATCH = 64
_READ_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Terms:
    """In which role of which ring a bundle is released, for whom, and who watches it."""

    ring: str = "main"
    role: Role = "ruling"
    stage: Stage | None = None
    guard: Guard | None = None


@dataclass(frozen=True)
class Draft:
    """A release to be made. `bundle` None ends the role."""

    terms: Terms
    bundle: Bundle | None
    cause: Cause
    reason: str = ""


@dataclass(frozen=True)
class Published:
    """The release that is in force now, whether it was made now, what is worth a look in the bundle, and the canary or
    shadow that ended for it.
    """

    release: BundleReleased
    created: bool
    problems: list[Problem]
    replaced: BundleReleased | None = None


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
        """Whether some release of the ring had this bundle, in any role, in force or not."""
        return any(release.digest == digest for release in self._state.listed(ring))

    async def publish(self, bundle: Bundle, terms: Terms, actor: str, *, replace: bool = False) -> Published:
        """Release the bundle in a role of a ring; what is in force there on the same terms is not released again.

        A canary of the same bundle ends with it; `replace` lets a canary or shadow end one of another bundle. Raises
        BundleFault with the problems of a bundle that may not rule, ApiFault where the role makes no sense now or is
        another bundle's, LogUnavailable where it could not be stored.
        """
        check_ring(terms.ring)
        problems = await asyncio.to_thread(check_bundle, bundle, self._state.tool_facts())
        if fatal := [problem for problem in problems if problem.fatal]:
            raise BundleFault(
                f"the bundle has {len(fatal)} problem(s), as `tidegate bundle check` lists; the first: {fatal[0]}",
                problems=problems,
            )
        async with self._journal.turn:
            current = self._state.current(terms.ring, terms.role)
            if current is not None and self._is_same(current, bundle, terms):
                return Published(current, False, problems)
            self._require_ruling(bundle, terms)
            replaced = current if terms.role != "ruling" else None
            if replaced is not None and replaced.digest != bundle.digest and not replace:
                raise _running(replaced)
            made = await self._release([Draft(terms, bundle, "published"), *self._ends_of(bundle, terms)], actor)
            return Published(made[0], True, problems, replaced)

    async def promote(self, terms: Terms, source: str, actor: str, meant: int | str | None = None) -> BundleReleased:
        """Let the canary's bundle rule its ring, and end the canary; or let what rules the ring `source` rule `terms`'.

        `meant` is its number or digest. Raises ApiFault where there is nothing to promote, something else than what is
        meant, or it rules already.
        """
        check_ring(terms.ring)
        check_ring(source)
        from_canary = source == "canary"
        while True:
            found = self._promoted(terms.ring, source)
            if meant is not None and meant not in (found.number, found.digest):
                raise _other(found, source, meant)
            bundle = await self.bundle(found.digest)
            async with self._journal.turn:
                if self._promoted(terms.ring, source).number != found.number:
                    continue
                current = self._state.current(terms.ring)
                if current is not None and current.digest == found.digest:
                    raise _already(found.digest, terms.ring)
                said = f"release {found.number}, the canary" if from_canary else f"release {found.number} of {source}"
                draft = Draft(terms, bundle, "promoted", f"It was {said}.")
                return (await self._release([draft, *self._ends_of(bundle, terms)], actor))[0]

    async def withdraw(self, ring: str, role: Role, actor: str) -> BundleReleased:
        """End a ring's canary or shadow: a release of no bundle. Raises ApiFault where there is none."""
        check_ring(ring)
        async with self._journal.turn:
            if self._state.current(ring, role) is None:
                raise ApiFault(404, "nothing-to-withdraw", f"the ring '{ring}' has no {role} now")
            return await self._end(ring, role, actor, "")

    async def roll_back(self, ring: str, to: int | str, actor: str) -> BundleReleased:
        """A new release of the bundle that release `to` (a number, or a digest) of this ring had when it ruled."""
        check_ring(ring)
        target = self._find(ring, to)
        bundle = await self.bundle(target.digest)
        async with self._journal.turn:
            current = self._state.current(ring)
            if current is not None and current.digest == target.digest:
                raise _already(target.digest, ring)
            drafts = [Draft(Terms(ring), bundle, "rolled-back"), *self._ends_of(bundle, Terms(ring))]
            return (await self._release(drafts, actor))[0]

    async def take_back(self, release: BundleReleased, actor: str, reason: str) -> BundleReleased | None:
        """End a canary; let what ruled before a ruling release rule again. None where the release is not in force any
        more, or nothing ruled before it.
        """
        before = self._state.before(release) if release.role == "ruling" else None
        bundle = await self.bundle(before.digest) if before is not None else None
        async with self._journal.turn:
            current = self._state.current(release.ring, release.role)
            if current is None or current.number != release.number:
                return None
            if release.role != "ruling":
                return await self._end(release.ring, release.role, actor, reason)
            if bundle is None:
                return None
            return (await self._release([Draft(Terms(release.ring), bundle, "rolled-back", reason)], actor))[0]

    async def bundle(self, digest: str) -> Bundle:
        """A bundle that was released, read from the log and checked against its digest."""
        if self._recent is not None and self._recent.digest == digest:
            return self._recent
        if not digest or not any(release.digest == digest for release in self._state.listed()):
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

    async def _end(self, ring: str, role: Role, actor: str, reason: str) -> BundleReleased:
        return (await self._release([Draft(Terms(ring, role), None, "withdrawn", reason)], actor))[0]

    async def _release(self, drafts: list[Draft], actor: str) -> list[BundleReleased]:
        """All of them in one append, in their order; hold the journal's turn."""
        now_us = self._clock()
        signed = [self._signed(draft) for draft in drafts]
        if any(len(one) > POINTER_BYTES_MAX for _, one in signed):
            raise ApiFault(422, "stage-too-large", "the regions, groups and labels are too many for one release")

        def compose(chain: Chain) -> list[Record]:
            return [
                record
                for draft, (_, one) in zip(drafts, signed, strict=True)
                for record in records_for_release(
                    chain,
                    one,
                    draft.bundle,
                    region=self._region,
                    actor=actor,
                    cause=draft.cause,
                    reason=draft.reason,
                    now_us=now_us,
                )
            ]

        await self._journal.append(compose)
        self._recent = drafts[0].bundle or self._recent
        return [
            self._state.releases[draft.terms.ring][number] for draft, (number, _) in zip(drafts, signed, strict=True)
        ]

    def _signed(self, draft: Draft) -> tuple[int, bytes]:
        """Under a number that no other release of the ring has, or may have."""
        terms = draft.terms
        current = self._state.current(terms.ring, terms.role)
        number = max(self._state.number_of(terms.ring), self._spent.get(terms.ring, 0)) + 1
        self._spent[terms.ring] = number
        release = Release(
            tenant=self._state.tenant,
            ring=terms.ring,
            number=number,
            digest=draft.bundle.digest if draft.bundle else "",
            previous=current.digest if current else "",
            role=terms.role,
            stage=terms.stage,
            guard=terms.guard,
        )
        return number, self._key.sign(release)

    def _is_same(self, current: BundleReleased, bundle: Bundle, terms: Terms) -> bool:
        if current.digest != bundle.digest or signer_of(current) != self._key.key_id:
            return False  # under a new key the same bundle is released again, so that the old one can go
        if terms.role == "ruling":
            return True  # a guard for what rules already has nothing to return to
        signed = terms_of(current)
        return signed is not None and (signed.stage, signed.guard) == (terms.stage, terms.guard)

    def _require_ruling(self, bundle: Bundle, terms: Terms) -> None:
        if terms.role == "ruling":
            return
        ruling = self._state.current(terms.ring)
        if ruling is None:
            raise ApiFault(409, "nothing-rules", f"no bundle rules the ring '{terms.ring}' yet; let one rule it first")
        if ruling.digest == bundle.digest:
            raise _already(bundle.digest, terms.ring)

    def _ends_of(self, bundle: Bundle, terms: Terms) -> list[Draft]:
        """What ends when the bundle rules: a canary or shadow of the very same one."""
        if terms.role != "ruling":
            return []
        roles: tuple[Role, ...] = ("canary", "shadow")
        standing = {role: self._state.current(terms.ring, role) for role in roles}
        return [
            Draft(Terms(terms.ring, role), None, "withdrawn", "Its bundle rules the ring.")
            for role, release in standing.items()
            if release is not None and release.digest == bundle.digest
        ]

    def _promoted(self, ring: str, source: str) -> BundleReleased:
        found = self._state.current(ring, "canary") if source == "canary" else self._state.current(source)
        if found is None:
            what = f"the ring '{ring}' has no canary" if source == "canary" else f"nothing rules the ring '{source}'"
            raise ApiFault(404, "nothing-to-promote", f"{what}; `tidegate bundle status` shows what there is")
        return found

    def _find(self, ring: str, to: int | str) -> BundleReleased:
        found = [release for release in self._state.listed(ring) if to in (release.number, release.digest)]
        for release in found:
            if release.role == "ruling":
                return release
        if found:
            raise ApiFault(409, "never-ruled", f"release {to} never ruled the ring '{ring}': publish or promote it")
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


def _already(digest: str, ring: str) -> ApiFault:
    return ApiFault(409, "already-current", f"the bundle {digest[:12]} rules the ring '{ring}' already")


def _running(release: BundleReleased) -> ApiFault:
    terms = terms_of(release)
    guarded = ", guarded" if terms is not None and terms.guard is not None else ""
    sentence = (
        f"release {release.number} (bundle {release.digest[:12]}{guarded}) is the {release.role} of the ring "
        f"'{release.ring}' now; --replace (`replace=true`) ends it for this one, and "
        f"`tidegate bundle rollback --{release.role}` ends it alone"
    )
    return ApiFault(409, f"{release.role}-running", sentence)


def _other(found: BundleReleased, source: str, meant: int | str) -> ApiFault:
    named = f"release {meant}" if isinstance(meant, int) else f"bundle {meant[:12]}"
    stands = f"is the canary of the ring '{found.ring}'" if source == "canary" else f"rules the ring '{found.ring}'"
    sentence = f"release {found.number} (bundle {found.digest[:12]}) {stands} now, not {named}; nothing was promoted"
    return ApiFault(409, "other-release", f"{sentence}: `tidegate bundle status` shows what there is")
