"""The last good release of each tenant, on the edge's disk: it decides from there before the log has answered."""

import os
from pathlib import Path

import msgspec

from tidegate.policy.release import Activation


class _Kept(msgspec.Struct, frozen=True):
    v: int
    signed: bytes
    canonical: bytes


def keep(directory: Path, tenant: str, activation: Activation) -> None:
    """Replace what was kept, atomically and durably."""
    directory.mkdir(parents=True, exist_ok=True)
    path = _path(directory, tenant)
    content = msgspec.json.encode(_Kept(1, activation.signed, activation.bundle.canonical))
    draft = path.with_suffix(".new")
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def kept_release(directory: Path, tenant: str) -> tuple[bytes, bytes] | None:
    """(signed release, canonical bundle) as kept; both are verified again by whoever uses them. None where nothing
    readable is there.
    """
    try:
        kept = msgspec.json.decode(_path(directory, tenant).read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None
    return kept.signed, kept.canonical


def _path(directory: Path, tenant: str) -> Path:
    return directory / f"{tenant.encode().hex()}.json"
