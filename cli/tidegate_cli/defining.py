"""What tools declared of their arguments at any time, from the history `catalog`: by this recorded calls are decided
again.
"""

import msgspec

from tidegate.chain import open_event
from tidegate.events import ToolDefined
from tidegate.log.port import EventLog
from tidegate.policy.argument_types import Document


async def definitions(log: EventLog, tenant: str, only: str = "") -> dict[str, Document]:
    """By the digests of definitions; `only` one of them, where it is given. Raises LogUnavailable."""
    from tidegate_cli.reading import records

    found: dict[str, Document] = {}
    async for record in records(log, ("catalog",), follow=False):
        if record is None or record.value is None or only.encode() not in record.value:
            continue
        try:
            event = open_event(record.value)
        except msgspec.DecodeError:  # of a newer version
            continue
        if isinstance(event, ToolDefined) and event.tenant == tenant and only in ("", event.digest):
            found[event.digest] = Document.of_definition(event.definition)
    return found
