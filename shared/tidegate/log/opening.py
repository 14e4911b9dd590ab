"""Opening the log that the settings name: one place picks the adapter."""

from tidegate.log.port import EventLog
from tidegate.settings import Settings


def open_log(settings: Settings, *, writer_id: str | None = None) -> EventLog:
    """The log of this process, not yet prepared. Call inside a running event loop.

    `writer_id` names a writer of which one may exist in the cluster; a local log has one owner anyway. Raises
    LogUnavailable where the local log belongs to another process.
    """
    if settings.is_local:
        from tidegate.log.retention import Kept
        from tidegate.log.sqlite import SqliteLog

        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return SqliteLog(
            settings.data_dir / "log.db", records_max=settings.limits.pending_records_max, kept=Kept.of(settings)
        )
    from tidegate.log.kafka import KafkaLog  # imported when needed: a local edge has no use for Kafka's clients

    return KafkaLog(settings, writer_id=writer_id)


def open_log_for_reading(settings: Settings) -> EventLog:
    """The log for an onlooker (`log tail`, `why`): a local one may belong to another process that goes on writing.

    Follow it without a group; append nothing. Raises LogUnavailable (`log-missing`) where there is no local log yet.
    """
    if settings.is_local:
        from tidegate.log.sqlite import open_readonly

        return open_readonly(settings.data_dir / "log.db")
    return open_log(settings)
