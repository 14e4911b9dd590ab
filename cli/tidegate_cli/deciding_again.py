"""A recorded decision made again by the bundle that made it, for `tidegate why`: they must agree."""

from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.chain import open_event
from tidegate.errors import BundleFault
from tidegate.events import CallRequested, Sealed
from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import Bundle
from tidegate.policy.replaying import Replayer, differs, past_of
from tidegate_cli.matching import Seen

AGREES: Final = "agrees"
_BLANK: Final = {
    "elsewhere": "not by a rule, so there is nothing to decide again",
    "erased": "cannot be decided again: who asked was erased, or the key is not here",
    "not-kept": "cannot be decided again: it depends on arguments or circumstances that were not kept",
}
_BY_ITS_CALL: Final = frozenset({"tasks/get", "tasks/update"})


def decided_again(canonical: bytes | None, call: Seen, definitions: Mapping[str, Document]) -> str:
    """AGREES, how it differs, or why it cannot be told. `canonical`: the bundle's bytes, None where they are gone;
    `definitions`: of tools, by their digests.
    """
    try:
        event = open_event(call.raw)
    except msgspec.DecodeError:
        return "cannot be decided again: it was written by a newer version"
    if not isinstance(event, CallRequested):
        return ""
    past = past_of(event, _sealed(call))
    if not past.bundle or past.stage != "policy":
        return _BLANK["elsewhere"]
    if past.method in _BY_ITS_CALL:
        return f"cannot be decided again by itself: as the call that began the task was, {event.root_call_id}"
    if canonical is None:
        return f"cannot be decided again: the log does not hold the bundle {past.bundle[:12]}"
    try:
        verdict = Replayer(Bundle.from_bytes(canonical), definitions).decide(past)
    except BundleFault as fault:
        return f"cannot be decided again: {fault.sentence}"
    if isinstance(verdict, str):
        return _BLANK[verdict]
    found = differs(past, verdict)
    return f"DIFFERS: {found}" if found else AGREES


def _sealed(call: Seen) -> Sealed | None:
    """The personal part as it was opened for showing."""
    if call.shut:
        return None
    part = call.sealed
    arguments = part.get("arguments")
    return Sealed(
        subject=str(part.get("subject", "")),
        user=str(part.get("user", "")),
        login=str(part.get("login", "")),
        address=str(part.get("address", "")),
        arguments=msgspec.Raw(b"null" if arguments is None else msgspec.json.encode(arguments)),
    )
