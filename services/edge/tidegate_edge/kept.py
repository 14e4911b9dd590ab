"""The last good release of each tenant and role, on the edge's disk: it decides from there before the log has answered.

The ruling one has the file that it always had, so that an edge of an older version reads it, too. An ended role is kept
as well: its number is what an older release of that role is refused by.
"""

import os
from pathlib import Path

import msgspec

from tidegate.events import Role


class _Kept(msgspec.Struct, frozen=True):
    v: int
    signed: bytes
    canonical: bytes


def keep(directory: Path, tenant: str, role: Role, signed: bytes, canonical: bytes) -> None:
    """Replace what was kept, atomically and durably. `canonical` is empty for a role that has ended. Blocks."""
    directory.mkdir(parents=True, exist_ok=True)
    path = _path(directory, tenant, role)
    content = msgspec.json.encode(_Kept(1, signed, canonical))
    draft = path.with_suffix(".new")
    with open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def kept_release(directory: Path, tenant: str, role: Role) -> tuple[bytes, bytes] | None:
    """(signed release, canonical bundle) as kept; both are verified again by whoever uses them. None where nothing
    readable is there.
    """
    try:
        kept = msgspec.json.decode(_path(directory, tenant, role).read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None
    return kept.signed, kept.canonical


def _path(directory: Path, tenant: str, role: Role) -> Path:
    name = tenant.encode().hex()
    return directory / (f"{name}.json" if role == "ruling" else f"{name}.{role}.json")
