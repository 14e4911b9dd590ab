"""ClickHouse from the command line: the server that the settings name, or the process that owns the embedded engine."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Literal

from tidegate.analytics.clickhouse import open_reader, open_writer
from tidegate.analytics.port import Analytics
from tidegate.errors import AnalyticsUnavailable
from tidegate.settings import Settings


@contextlib.asynccontextmanager
async def reaching(settings: Settings, account: Literal["reader", "writer"] = "reader") -> AsyncIterator[Analytics]:
    """Raises AnalyticsUnavailable with what to do; whatever the statements raise."""
    logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())  # its words are in the fault
    analytics = open_reader(settings) if account == "reader" else open_writer(settings)
    try:
        yield analytics
    except AnalyticsUnavailable as fault:
        raise AnalyticsUnavailable(f"{fault.sentence}; {_remedy(settings)}") from fault
    finally:
        await analytics.close()


def _remedy(settings: Settings) -> str:
    if settings.analytics == "chdb":
        return f"is `tidegate up` running? It owns the analytics in {settings.data_dir}: start it, then try again"
    return f"is {settings.analytics} up, and does this machine reach it?"
