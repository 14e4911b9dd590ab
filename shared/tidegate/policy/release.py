"""Releases in the log: the records that make one, and the fold by which a reader knows which release has which role.

On `policy-state`, `tenant|ring` holds the signed ruling release, `tenant|ring|canary` and `tenant|ring|shadow` those of
the other roles, and `tenant|digest|n|m` the n-th of m chunks of the bundle's canonical bytes (a key for each, or
compaction would keep one chunk only), appended again with every release, so that a reader needs no memory of old
bundles. Numbers strictly increase within a ring, whatever their roles; a reader holds them against those of the same
role, for roles come from different partitions. A roll-back is a new release of an old digest; an empty digest ends a
canary or shadow. What has a role keeps it until a better one is complete; records come in any order, and twice.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, get_args

import msgspec

from tidegate.chain import Chain
from tidegate.errors import BundleFault
from tidegate.events import BundleReleased, Role
from tidegate.ids import uuid7
from tidegate.limits import BUNDLE_BYTES_MAX, BUNDLE_CHUNK_BYTES
from tidegate.log.port import Delivered, Record
from tidegate.policy.bundle import Bundle
from tidegate.policy.signing import Release, SignedRelease, Trust, open_release

RING = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
STATE_TOPIC = "policy-state"
ROLES: Final[tuple[Role, ...]] = get_args(Role)
Cause = Literal["published", "rolled-back", "promoted", "withdrawn"]


def pointer_key(tenant: str, ring: str, role: Role = "ruling") -> bytes:
    """The key under which `policy-state` holds the newest release of a role of a ring."""
    return f"{tenant}|{ring}".encode() if role == "ruling" else f"{tenant}|{ring}|{role}".encode()


def chunk_records(tenant: str, bundle: Bundle) -> list[Record]:
    """The bundle's canonical bytes as records of `policy-state`."""
    return _chunk_records(tenant, bundle.digest, bundle.canonical)


def _chunk_records(tenant: str, digest: str, canonical: bytes) -> list[Record]:
    starts = range(0, len(canonical), BUNDLE_CHUNK_BYTES)
    return [
        Record(
            STATE_TOPIC,
            f"{tenant}|{digest}|{number}|{len(starts)}".encode(),
            canonical[start : start + BUNDLE_CHUNK_BYTES],
        )
        for number, start in enumerate(starts)
    ]


def records_for_release(
    chain: Chain,
    signed: bytes,
    bundle: Bundle | None,
    *,
    region: str,
    actor: str,
    cause: Cause,
    reason: str = "",
    now_us: int,
) -> list[Record]:
    """What a release appends, all in one append: the history's event, the bundle's bytes, the pointer of its role.

    `bundle` is None where the release ends its role (a digest of ""): then there are no bytes. Several releases that
    belong together (a promotion: the ring's new ruling one, and the end of its canary) are one append, too.
    """
    release = msgspec.json.decode(bytes(msgspec.json.decode(signed, type=SignedRelease).release), type=Release)
    event = BundleReleased(
        id=uuid7(now_us),
        time_us=now_us,
        tenant=release.tenant,
        region=region,
        ring=release.ring,
        number=release.number,
        digest=release.digest,
        previous=release.previous,
        cause=cause,
        actor=actor,
        release=msgspec.Raw(signed),
        role=release.role,
        reason=reason,
    )
    pointer = Record(STATE_TOPIC, pointer_key(release.tenant, release.ring, release.role), signed)
    chunks = chunk_records(release.tenant, bundle) if bundle is not None else []
    return [chain.seal(event), *chunks, pointer]


class Chunks:
    """Bundles as they arrive, chunk by chunk, in any order. Bounded: the oldest leaves first, the wanted one never."""

    def __init__(self, bytes_max: int = 4 * BUNDLE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}

    def add(self, digest: str, number: int, count: int, content: bytes, *wanted: str) -> None:
        """Keep a chunk; `wanted` are the digests that are waited for."""
        fits = 0 <= number < count and count * BUNDLE_CHUNK_BYTES < BUNDLE_BYTES_MAX + BUNDLE_CHUNK_BYTES
        if not fits or not DIGEST.fullmatch(digest) or len(content) > BUNDLE_CHUNK_BYTES:
            return
        parts = self._parts.setdefault((digest, count), {})
        self._bytes += len(content) - len(parts.get(number, b""))
        parts[number] = content
        for key in list(self._parts):
            if self._bytes <= self._bytes_max:
                break
            if key[0] not in (*wanted, digest):
                self._forget(key)

    def whole(self, digest: str) -> bytes | None:
        """The bytes, once all chunks are there."""
        for (name, count), parts in self._parts.items():
            if name == digest and len(parts) == count:
                return b"".join(parts[number] for number in range(count))
        return None

    def forget(self, digest: str) -> None:
        for key in [key for key in self._parts if key[0] == digest]:
            self._forget(key)

    def _forget(self, key: tuple[str, int]) -> None:
        self._bytes -= sum(map(len, self._parts.pop(key).values()))


@dataclass(frozen=True)
class Activation:
    """From now on this has its role. `signed` and `canonical` are what an edge keeps on its disk.

    Whether the bytes are what the release names is seen when `bundle` is opened: a large one is opened in a thread.
    """

    release: Release
    canonical: bytes = field(repr=False)
    signed: bytes = field(repr=False)

    @cached_property
    def bundle(self) -> Bundle:
        """Raises BundleFault: with the code `digest-mismatch` see `PolicyState.doubt`."""
        if hashlib.sha256(self.canonical).hexdigest() != self.release.digest:
            raise BundleFault("the bundle's bytes have another digest than the release says", code="digest-mismatch")
        return Bundle.from_bytes(self.canonical)


@dataclass(frozen=True)
class Withdrawal:
    """A canary or shadow has ended: nothing has this role until a higher number does."""

    release: Release
    signed: bytes = field(repr=False)


@dataclass(frozen=True)
class Rejection:
    """A release was refused; what had its role still has. `number` and `digest` are 0 and "" where it is unreadable."""

    reason: str
    sentence: str
    tenant: str
    ring: str
    number: int = 0
    digest: str = ""
    role: Role = "ruling"


Outcome = Activation | Withdrawal | Rejection | None


class _Holder:
    """One role of the ring."""

    def __init__(self) -> None:
        self.current: Activation | Withdrawal | None = None
        self.before: Activation | Withdrawal | None = None
        self.pending: tuple[Release, bytes] | None = None
        self.refused: tuple[int, str] = (0, "")  # the last one refused, so that it is said once
        self.known: set[tuple[int, str]] = set()  # accepted before: seeing them again is re-delivery, not an attempt

    @property
    def highest(self) -> int:
        current = self.current.release.number if self.current else 0
        return max(current, self.pending[0].number if self.pending else 0)

    def hold(self, outcome: Activation | Withdrawal) -> None:
        self.pending, self.before, self.current = None, self.current, outcome


class PolicyState:
    """Of one tenant and ring. Not shared between threads.

    `apply` and `advance` give one outcome each; where several are due (two roles waited for the same bytes), call
    `advance` until it has none.
    """

    def __init__(self, tenant: str, ring: str, trust: Trust) -> None:
        self._tenant = tenant
        self._ring = ring
        self._trust = trust
        self._chunks = Chunks()
        self._holders: dict[Role, _Holder] = {role: _Holder() for role in ROLES}

    @property
    def ruling(self) -> Activation | None:
        """The last activation of a ruling release."""
        return self.holding("ruling")

    def holding(self, role: Role) -> Activation | None:
        """What has this role; None where nothing has, or what had was withdrawn."""
        current = self._holders[role].current
        return current if isinstance(current, Activation) else None

    @property
    def awaited(self) -> Release | None:
        """A verified release that is not complete or not due yet."""
        return next((holder.pending[0] for holder in self._holders.values() if holder.pending), None)

    @property
    def incomplete(self) -> frozenset[tuple[Role, int]]:
        """Verified releases, by role and number, whose bytes are not at hand. Where one is still so at the log's end,
        its chunks had passed before it was known that they matter: read the log again, now they are kept.
        """
        pending = [holder.pending[0] for holder in self._holders.values() if holder.pending]
        return frozenset(
            (one.role, one.number) for one in pending if one.digest and self._chunks.whole(one.digest) is None
        )

    def apply(self, record: Delivered | Record, now_us: int) -> Outcome:
        """Fold one record of `policy-state` in; records of other topics, tenants and rings change nothing."""
        if record.topic != STATE_TOPIC or record.value is None:
            return None
        tenant, _, rest = record.key.decode("utf-8", "replace").partition("|")
        if tenant != self._tenant:
            return None
        match rest.split("|"):
            case [self._ring]:
                return self._point("ruling", record.value, now_us)
            case [self._ring, "canary" | "shadow" as role]:
                return self._point(role, record.value, now_us)
            case [digest, number, count] if number.isdecimal() and count.isdecimal() and len(number + count) < 16:
                wanted = set(self._wanted())
                self._chunks.add(digest, int(number), int(count), record.value, *wanted)
                return self.advance(now_us) if digest in wanted else None
        return None

    def advance(self, now_us: int) -> Outcome:
        """Activate what is complete and due. Call it when time has passed and something is `awaited`."""
        for holder in self._holders.values():
            outcome = self._advance(holder, now_us)
            if outcome is not None:
                return outcome
        return None

    def restore(self, signed: bytes, canonical: bytes, now_us: int, role: Role = "ruling") -> Outcome:
        """Begin with what was kept on disk, under the same checks as what comes from the log."""
        digest = hashlib.sha256(canonical).hexdigest()
        for record in _chunk_records(self._tenant, digest, canonical):
            self.apply(record, now_us)
        outcome = self._point(role, signed, now_us)
        sentence = "the kept bundle is not the one that the kept release names"
        return outcome or Rejection("digest-mismatch", sentence, self._tenant, self._ring, role=role)

    def doubt(self, activation: Activation) -> Rejection | None:
        """The bytes were not those of the digest: they are forgotten, and the right ones waited for. What had the role
        before has it again.
        """
        release = activation.release
        holder = self._holders[release.role]
        self._chunks.forget(release.digest)
        if holder.current is activation:
            holder.current = holder.before
            holder.pending = holder.pending or (release, activation.signed)
        sentence = "the bundle's bytes have another digest than the release says"
        return self._reject(holder, release, "digest-mismatch", sentence)

    def _wanted(self) -> Iterator[str]:
        return (holder.pending[0].digest for holder in self._holders.values() if holder.pending)

    def _advance(self, holder: _Holder, now_us: int) -> Outcome:
        if holder.pending is None:
            return None
        release, signed = holder.pending
        if release.not_before_us > now_us:
            return self._reject(
                holder, release, "not-yet-valid", "the release takes effect later; it is held back until then"
            )
        if not release.digest:
            holder.hold(ended := Withdrawal(release, signed))
            return ended
        canonical = self._chunks.whole(release.digest)
        if canonical is None:
            return None
        holder.hold(activation := Activation(release, canonical, signed))
        return activation

    def _point(self, role: Role, signed: bytes, now_us: int) -> Outcome:
        try:
            release = open_release(signed, self._trust, self._tenant)
        except BundleFault as fault:
            return Rejection(fault.code, fault.sentence, self._tenant, self._ring, role=role)
        holder = self._holders[role]
        if wrong := self._unfit(release, role):
            return self._reject(holder, release, *wrong)
        if (release.number, release.digest) in holder.known:
            return None
        if release.number <= holder.highest:
            return self._reject(
                holder, release, "number-not-higher", f"release {holder.highest} is already known; numbers only rise"
            )
        holder.known.add((release.number, release.digest))
        holder.pending = (release, signed)
        return self._advance(holder, now_us)

    def _unfit(self, release: Release, role: Role) -> tuple[str, str] | None:
        """Whether a release stands where it does not belong, though its signature is good."""
        if release.ring != self._ring:
            return "ring-foreign", f"the release is not one of the ring '{self._ring}'"
        if release.role != role:
            return "role-foreign", f"a release of the role '{release.role}' stands where those of '{role}' do"
        if not DIGEST.fullmatch(release.digest) and (release.digest or role == "ruling"):
            return "release-malformed", "the release names no bundle's digest"
        return None

    def _reject(self, holder: _Holder, release: Release, reason: str, sentence: str) -> Rejection | None:
        if holder.refused == (release.number, reason):
            return None
        holder.refused = (release.number, reason)
        return Rejection(reason, sentence, self._tenant, self._ring, release.number, release.digest, role=release.role)
