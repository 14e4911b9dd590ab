"""The fold of `policy-state` for one tenant and ring: which verified release, with which bundle, is to rule.

Pure; `apply` returns what follows from a record: an `Activation`, a `Rejection`, or nothing yet. The ruling release
stays until a better one is complete. Records arrive in any order of partitions, and twice. Counterpart: `release.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tidegate.errors import BundleFault
from tidegate.log.port import Delivered, Record
from tidegate.policy.bundle import Bundle
from tidegate.policy.release import (
    DIGEST,
    STATE_TOPIC,
    Chunks,
    Release,
    Trust,
    chunk_records,
    open_release,
    pointer_key,
)


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
        """A verified release that is not complete or not due yet. Where it stays incomplete at the end of the log, read it
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
            return Rejection(fault.code, fault.sentence, self._ring)
        records: Sequence[Record] = [
            *chunk_records(self._tenant, bundle),
            Record(STATE_TOPIC, pointer_key(self._tenant, self._ring), signed),
        ]
        outcome: Outcome = None
        for record in records:
            outcome = self.apply(record, now_us) or outcome
        return outcome or Rejection(
            "digest-mismatch", "the kept bundle is not the one that the kept release names", self._ring
        )

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
            return Rejection(fault.code, fault.sentence, self._ring)
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
        return Rejection(reason, sentence, self._ring, release.number, release.digest)
