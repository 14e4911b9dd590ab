"""Released bundles, read from the log: what is kept under a digest is never deleted."""

from tidegate.log.port import EventLog
from tidegate.policy.release import STATE_TOPIC, Chunks
from tidegate_cli.reading import records


async def bundle_bytes(log: EventLog, tenant: str, digest: str) -> bytes | None:
    """A bundle's canonical bytes; None where the log has no such bundle (any more)."""
    prefix = f"{tenant}|{digest}|".encode()
    chunks = Chunks()
    async for record in records(log, (STATE_TOPIC,), follow=False):
        if record is None or record.value is None or not record.key.startswith(prefix):
            continue
        number, _, count = record.key.removeprefix(prefix).decode("ascii", "replace").partition("|")
        if number.isdecimal() and count.isdecimal():
            chunks.add(digest, int(number), int(count), record.value, digest)
    return chunks.whole(digest)
