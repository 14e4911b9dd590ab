"""Sealed events and published keys as edges make them, for tests of whoever reads them."""

import secrets
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
from tests.parts.audit_events import completed, requested

from tidegate.chain import Chain
from tidegate.events import CallCompleted, CallRequested, Sealed, SubjectErased
from tidegate.ids import now_us, uuid7
from tidegate.log.port import Record
from tidegate.privacy.erasure import state_key, state_value
from tidegate.privacy.keys import SubjectKey, Wrapping, seal, topic_key
from tidegate.privacy.ring import TOPIC

RESULT = msgspec.Raw(b'{"content": [{"type": "text", "text": "to alice"}]}')


def write_masters(path: Path, *masters: bytes) -> None:
    """A file for `privacy.key_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(b64encode(master) + b"\n" for master in masters or (secrets.token_bytes(32),)))
    path.chmod(0o600)


def key_for(subject_id: str = "5ub", tenant: str = "acme", created_us: int = 0) -> SubjectKey:
    return SubjectKey.generate(tenant, subject_id, created_us or now_us())


def published(wrapping: Wrapping, *keys: SubjectKey) -> list[Record]:
    return [Record(TOPIC, topic_key(key.tenant, key.subject_id, key.kid), wrapping.wrap(key)) for key in keys]


def destroyed(*keys: SubjectKey) -> list[Record]:
    return [Record(TOPIC, topic_key(key.tenant, key.subject_id, key.kid), None) for key in keys]


def erasure(subject_id: str, erased_us: int, tenant: str = "acme", kids: tuple[str, ...] = ()) -> list[Record]:
    """As the policy service writes it: the event, and the state that tells those who come later."""
    event = SubjectErased(
        id=uuid7(),
        time_us=erased_us,
        tenant=tenant,
        region="eu",
        subject_id=subject_id,
        erasure_id=uuid7(),
        actor="root",
        reason="asked to",
        erased_us=erased_us,
        keys=kids,
    )
    record = Chain(f"policy.{uuid7()}").seal(event)
    assert record.value is not None
    return [record, Record("control-state", state_key(tenant, subject_id), state_value(record.value, True))]


def sealed_call(
    key: SubjectKey, call_id: str = "", at_us: int = 0, **personal: Any
) -> tuple[CallRequested, CallCompleted]:
    """A call of the key's subject, both events sealed under it."""
    plain: dict[str, Any] = {"issuer": "https://idp", "subject": "alice", "login": "alice@example.com"}
    plain |= {"claimed_client": "claude 1", "arguments": msgspec.Raw(b'{"path": "/a"}')}
    request = requested(
        call_id, at_us, tenant=key.tenant, subject_id=key.subject_id, sealed=seal(Sealed(**plain | personal), key)
    )
    login = str((plain | personal)["login"])
    return request, completed(request, sealed=seal(Sealed(login=login, result=RESULT), key))


def sealed_records(
    key: SubjectKey, *call_ids: str, writer: str = "edge-1.sealed.1", at_us: int = 0, **personal: Any
) -> list[Record]:
    """Calls of the key's subject, two records each, chained."""
    chain = Chain(writer)
    return [chain.seal(event) for call_id in call_ids for event in sealed_call(key, call_id, at_us, **personal)]
