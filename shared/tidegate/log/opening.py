"""Opening the log that the settings name: one place picks the adapter."""

from tidegate.log.port import EventLog
from tidegate.settings import Settings


def open_log(settings: Settings, *, writer_id: str | None = None) -> EventLog:
    """The log of this process, not yet prepared. Call inside a running event loop.

    `writer_id` names a writer of which one may exist in the cluster; a local log has one owner anyway. Raises
    LogUnavailable where the local log belongs to another process.
    """
    if settings.is_local:
        from tidegate.log.sqlite import SqliteLog

        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return SqliteLog(settings.data_dir / "log.db", records_max=settings.limits.pending_records_max)
    from tidegate.log.kafka import KafkaLog  # imported when needed: a local edge has no use for Kafka's clients

    return KafkaLog(settings, writer_id=writer_id)
