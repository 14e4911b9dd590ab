"""Releases in the log: the records that make one, and the fold by which a reader knows which release rules.

On `policy-state`, `tenant|ring` holds the signed release and `tenant|digest|n|m` the n-th of m chunks of the bundle's
canonical bytes (a key for each, or compaction would keep one chunk only), appended again with every release, so that a
reader needs no memory of old bundles. Numbers strictly increase within a ring; a roll-back is a new release of an old
digest. The ruling release stays until a better one is complete; records come in any order of partitions, and twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

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
Cause = Literal["published", "rolled-back", "promoted", "withdrawn"]


def pointer_key(tenant: str, ring: str, role: Role = "ruling") -> bytes:
    """The key under which `policy-state` holds the newest release of a role of a ring."""
    return f"{tenant}|{ring}".encode() if role == "ruling" else f"{tenant}|{ring}|{role}".encode()


def chunk_records(tenant: str, bundle: Bundle) -> list[Record]:
    """The bundle's canonical bytes as records of `policy-state`."""
    starts = range(0, len(bundle.canonical), BUNDLE_CHUNK_BYTES)
    return [
        Record(
            STATE_TOPIC,
            f"{tenant}|{bundle.digest}|{number}|{len(starts)}".encode(),
            bundle.canonical[start : start + BUNDLE_CHUNK_BYTES],
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

    def add(self, digest: str, number: int, count: int, content: bytes, wanted: str) -> None:
        """Keep a chunk; `wanted` is the digest that is waited for."""
        fits = 0 <= number < count and count * BUNDLE_CHUNK_BYTES < BUNDLE_BYTES_MAX + BUNDLE_CHUNK_BYTES
        if not fits or not DIGEST.fullmatch(digest) or len(content) > BUNDLE_CHUNK_BYTES:
            return
        parts = self._parts.setdefault((digest, count), {})
        self._bytes += len(content) - len(parts.get(number, b""))
        parts[number] = content
        for key in list(self._parts):
            if self._bytes <= self._bytes_max:
                break
            if key[0] not in (wanted, digest):
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
    """From now on this rules. `signed` and `bundle.canonical` are what an edge keeps on its disk."""

    release: Release
    bundle: Bundle
    signed: bytes = field(repr=False)


@dataclass(frozen=True)
class Rejection:
    """A release was refused; what ruled still rules. `number` and `digest` are 0 and "" where it cannot be read."""

    reason: str
    sentence: str
    tenant: str
    ring: str
    number: int = 0
    digest: str = ""


Outcome = Activation | Rejection | None


class PolicyState:
    """Not shared between threads. `ruling` is the last activation."""

    def __init__(self, tenant: str, ring: str, trust: Trust) -> None:
        self._tenant = tenant
        self._ring = ring
        self._trust = trust
        self._chunks = Chunks()
        self._pending: tuple[Release, bytes] | None = None
        self._refused: tuple[int, str] = (0, "")  # the last one refused, so that it is said once
        self._known: set[tuple[int, str]] = set()  # accepted before: seeing them again is re-delivery, not an attempt
        self.ruling: Activation | None = None

    @property
    def awaited(self) -> Release | None:
        """A verified release that is not complete or not due yet. Where it stays incomplete at the log.s end, read it
        from the start again: now its chunks are kept, whatever else passes."""
        return self._pending[0] if self._pending else None

    def apply(self, record: Delivered | Record, now_us: int) -> Outcome:
        """Fold one record of `policy-state` in; records of other topics, tenants and rings change nothing."""
        if record.topic != STATE_TOPIC or record.value is None:
            return None
        tenant, _, rest = record.key.decode("utf-8", "replace").partition("|")
        if tenant != self._tenant:
            return None
        match rest.split("|"):
            case [ring] if ring == self._ring:
                return self._point(record.value, now_us)
            case [digest, number, count] if number.isdecimal() and count.isdecimal() and len(number + count) < 16:
                self._chunks.add(digest, int(number), int(count), record.value, self._wanted)
                return self.advance(now_us) if digest == self._wanted else None
        return None

    def advance(self, now_us: int) -> Outcome:
        """Activate what is complete and due. Call it when time has passed and something is `awaited`."""
        if self._pending is None:
            return None
        release, signed = self._pending
        if release.not_before_us > now_us:
            return self._reject(release, "not-yet-valid", "the release takes effect later; it is held back until then")
        canonical = self._chunks.whole(release.digest)
        if canonical is None:
            return None
        self._pending = None
        try:
            bundle = Bundle.from_bytes(canonical)
        except BundleFault as fault:
            self._chunks.forget(release.digest)
            return self._reject(release, fault.code, fault.sentence)
        if bundle.digest != release.digest:
            self._chunks.forget(release.digest)
            return self._reject(
                release, "digest-mismatch", "the bundle's bytes have another digest than the release says"
            )
        self.ruling = Activation(release, bundle, signed)
        return self.ruling

    def restore(self, signed: bytes, canonical: bytes, now_us: int) -> Outcome:
        """Begin with what was kept on disk, under the same checks as what comes from the log."""
        try:
            bundle = Bundle.from_bytes(canonical)
        except BundleFault as fault:
            return Rejection(fault.code, fault.sentence, self._tenant, self._ring)
        records: Sequence[Record] = [
            *chunk_records(self._tenant, bundle),
            Record(STATE_TOPIC, pointer_key(self._tenant, self._ring), signed),
        ]
        outcome: Outcome = None
        for record in records:
            outcome = self.apply(record, now_us) or outcome
        sentence = "the kept bundle is not the one that the kept release names"
        return outcome or Rejection("digest-mismatch", sentence, self._tenant, self._ring)

    @property
    def _wanted(self) -> str:
        return self._pending[0].digest if self._pending else ""

    @property
    def _highest(self) -> int:
        ruling = self.ruling.release.number if self.ruling else 0
        return max(ruling, self._pending[0].number if self._pending else 0)

    def _point(self, signed: bytes, now_us: int) -> Outcome:
        try:
            release = open_release(signed, self._trust, self._tenant)
        except BundleFault as fault:
            return Rejection(fault.code, fault.sentence, self._tenant, self._ring)
        if release.ring != self._ring or not DIGEST.fullmatch(release.digest):
            return self._reject(release, "ring-foreign", f"the release is not one of the ring '{self._ring}'")
        if (release.number, release.digest) in self._known:
            return None
        if release.number <= self._highest:
            return self._reject(
                release, "number-not-higher", f"release {self._highest} is already known; numbers only rise"
            )
        self._known.add((release.number, release.digest))
        self._pending = (release, signed)
        return self.advance(now_us)

    def _reject(self, release: Release, reason: str, sentence: str) -> Rejection | None:
        if self._refused == (release.number, reason):
            return None
        self._refused = (release.number, reason)
        return Rejection(reason, sentence, self._tenant, self._ring, release.number, release.digest)
