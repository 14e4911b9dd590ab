"""Imposing and lifting quarantines, and keeping `control-state` true: it holds the event of each in force.

The detector's quarantines arrive through the history `control`; where their state record is missing it is written
here.
"""

from collections.abc import Callable

from tidegate.chain import Chain
from tidegate.events import QuarantineImposed, QuarantineLifted
from tidegate.ids import uuid7
from tidegate.log.port import Delivered, Record
from tidegate.policy.approvals import approval_in
from tidegate.privacy.erasure import is_erasure
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.state import ControlPlane

STATE_TOPIC = "control-state"


class Warden:
    """Writes quarantines."""

    def __init__(self, state: ControlPlane, journal: Journal, region: str, clock: Callable[[], int]) -> None:
        self._state = state
        self._journal = journal
        self._region = region
        self._clock = clock
        self._stored: set[str] = set()  # ids that have a record on `control-state`
        self._values: dict[str, bytes] = {}  # imposing events seen without one, as stored

    async def impose(self, scope: str, value: str, reason: str, ttl_s: float, actor: str) -> QuarantineImposed:
        """From now on the edges refuse what matches."""
        now_us = self._clock()
        event = QuarantineImposed(
            id=uuid7(now_us),
            time_us=now_us,
            tenant=self._state.tenant,
            region=self._region,
            quarantine_id=uuid7(now_us),
            scope=scope,  # type: ignore[arg-type]
            value=value,
            reason=reason,
            actor=actor,
            expires_us=now_us + int(ttl_s * 1e6) if ttl_s else 0,
        )

        def compose(chain: Chain) -> list[Record]:
            record = chain.seal(event)
            return [record, self._record(event.quarantine_id, record.value)]

        async with self._journal.turn:
            await self._journal.append(compose)
            self._stored.add(event.quarantine_id)
        return event

    async def lift(self, quarantine_id: str, reason: str, actor: str) -> None:
        """End one that is in force. Raises ApiFault where there is none."""
        now_us = self._clock()
        async with self._journal.turn:
            if self._state.quarantines.get(quarantine_id) is None:
                raise ApiFault(
                    404,
                    "quarantine-unknown",
                    "no quarantine with this id is in force; `tidegate quarantine list` shows those that are",
                )
            event = QuarantineLifted(
                id=uuid7(now_us),
                time_us=now_us,
                tenant=self._state.tenant,
                region=self._region,
                quarantine_id=quarantine_id,
                actor=actor,
                reason=reason,
            )
            await self._journal.append(lambda chain: [chain.seal(event), self._record(quarantine_id, None)])
            self._stored.discard(quarantine_id)

    def note(self, record: Delivered) -> None:
        """See a record of `control` or `control-state` pass by; `reconcile` then acts on what differs."""
        tenant, _, quarantine_id = record.key.decode("utf-8", "replace").partition("|")
        if tenant != self._state.tenant:
            return
        if record.topic == STATE_TOPIC and (is_erasure(record.key) or approval_in(record.key)):
            return
        if record.topic == "control":
            if record.value is not None and b'"type":"quarantine.imposed' in record.value:
                self._values[quarantine_id] = record.value
        elif record.value is None:
            self._stored.discard(quarantine_id)
        else:
            self._stored.add(quarantine_id)

    async def reconcile(self) -> None:
        """Write the state records that are missing, remove those not in force any more. Raises LogUnavailable."""
        now_us = self._clock()
        async with self._journal.turn:
            in_force = {event.quarantine_id for event in self._state.quarantines.current(now_us)}
            missing = {name: self._values[name] for name in in_force - self._stored if name in self._values}
            stale = self._stored - in_force
            records = [self._record(name, value) for name, value in missing.items()]
            records += [self._record(name, None) for name in stale]
            if records:
                await self._journal.append(lambda _: records)
                self._stored = (self._stored | missing.keys()) - stale
            self._values.clear()
            self._state.quarantines.forget_expired(now_us)

    def _record(self, quarantine_id: str, value: bytes | None) -> Record:
        return Record(STATE_TOPIC, f"{self._state.tenant}|{quarantine_id}".encode(), value)
