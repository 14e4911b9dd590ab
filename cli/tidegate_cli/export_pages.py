"""Calls out of ClickHouse page by page, in the order of their requests, so that memory holds one page whatever is
asked for.

Each page looks at a stretch of time that grows over quiet hours and shrinks in busy ones: none reads the whole table.
What the capture policy did not keep is not asked for. Counterpart: `exporting.py`.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from tidegate.analytics.port import Analytics
from tidegate.errors import ConfigFault
from tidegate.events import Finding
from tidegate.ids import now_us
from tidegate.ocsf.activity import Activity

PAGE_ROWS: Final = 10_000
CONTENT_PAGE_ROWS: Final = 1_000  # a row has up to twice limits.capture_bytes_max of content
STRETCH_US: Final = 3_600_000_000
STRETCH_MIN_US: Final = 1_000
STRETCH_MAX_US: Final = 90 * 86_400_000_000

_TIME: Final = "fromUnixTimestamp64Micro({%s:Int64}, 'UTC')"
_FINDING: Final = ("rule", "severity", "action", "direction", "count")
_PLAIN: Final = (
    *("call_id", "root_call_id", "tenant", "region", "status", "subject_id", "agent", "session_id"),
    *("protocol_session_id", "protocol", "edge", "method", "server", "target", "labels", "decision", "stage", "reason"),
    *("message", "rules", "mode", "bundle", "release", "catalog", "groups", "error_code", "policy_us", "upstream_us"),
    *("total_us", "arguments_bytes", "arguments_digest", "arguments_capture", "result_bytes", "result_digest"),
    *("result_capture", "masked", "is_erased", "requested_event", "abandoned_event", "completed_event"),
)
_PERSONAL: Final = ("issuer", "subject", "login", "claimed_client", "address")
_CONTENT: Final = ("arguments", "result", "inputs")
_CAPTURE_OF: Final = {"arguments": "arguments", "result": "result", "inputs": "arguments"}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls: requested in [since, until), and what of them. `until_us` 0: now."""

    since_us: int
    until_us: int = 0
    server: str = ""
    decision: str = ""
    tenant: str = ""
    personal: bool = True
    content: bool = False  # arguments and results as captured

    def settled(self) -> "Span":
        """With an end. Raises ConfigFault where that is before the beginning."""
        span = self if self.until_us else msgspec.structs.replace(self, until_us=now_us())
        if span.since_us >= span.until_us:
            raise ConfigFault("--until is not after --since: give an older --since, or a younger --until")
        return span


class Row(msgspec.Struct, frozen=True):
    """A call as the view `calls` shows it; times are microseconds, 0 where there is none."""

    requested_us: int
    completed_us: int
    findings: tuple[Finding, ...]
    columns: dict[str, Any]


class Page(msgspec.Struct, frozen=True):
    rows: list[Row]
    reached_us: int  # everything requested before this has been delivered


async def pages(analytics: Analytics, span: Span) -> AsyncIterator[Page]:
    """All calls of the span; `span.settled()`. Raises AnalyticsUnavailable, AnalyticsRefused."""
    size = CONTENT_PAGE_ROWS if span.content else PAGE_ROWS
    cursor: tuple[int, str, str] = (span.since_us, "", "")
    stretch = STRETCH_US
    while cursor[0] < span.until_us:
        end = min(span.until_us, cursor[0] + stretch)
        rows = await _page(analytics, span, cursor, end, size)
        from_us = cursor[0]
        if len(rows) == size:
            last = rows[-1]
            cursor = (last.requested_us, last.columns["tenant"], last.columns["call_id"])
        else:
            cursor = (end, "", "")
        stretch = _next_stretch(stretch, cursor[0] - from_us, len(rows), size)
        yield Page(rows, cursor[0])


def _next_stretch(stretch_us: int, covered_us: int, rows: int, size: int) -> int:
    """Three quarters of a page, if calls go on to come as they did; at most four times as long as before."""
    wanted = covered_us * size * 3 // (4 * rows) if rows else STRETCH_MAX_US
    return max(STRETCH_MIN_US, min(wanted, stretch_us * 4, STRETCH_MAX_US))


async def _page(analytics: Analytics, span: Span, cursor: tuple[int, str, str], end_us: int, size: int) -> list[Row]:
    parameters = {"from": cursor[0], "until": end_us, "past_tenant": cursor[1], "past_call": cursor[2], "size": size}
    wanted = {name: getattr(span, name) for name in ("server", "decision", "tenant") if getattr(span, name)}
    answer = await analytics.query(_statement(span, list(wanted)), parameters | wanted)
    return [_row(answer.names, values) for values in answer.rows]


def _statement(span: Span, wanted: Sequence[str]) -> str:
    columns = [
        "toUnixTimestamp64Micro(requested_at) AS requested_us",
        "toUnixTimestamp64Micro(ifNull(completed_at, toDateTime64(0, 6, 'UTC'))) AS completed_us",
        *(f"findings.{name} AS findings_{name}" for name in _FINDING),
        *_PLAIN,
        *(_PERSONAL if span.personal else ()),
        *(
            f"if({_CAPTURE_OF[name]}_capture IN ('full', 'masked'), {name}, '') AS kept_{name}"
            for name in _content(span)
        ),
    ]
    past = f"({_TIME % 'from'}, {{past_tenant:String}}, {{past_call:String}})"
    conditions = [
        f"requested_at >= {_TIME % 'from'}",
        f"requested_at < {_TIME % 'until'}",
        f"(requested_at, tenant, call_id) > {past}",
        *(f"{name} = {{{name}:String}}" for name in wanted),
    ]
    return (
        f"SELECT {', '.join(columns)} FROM tidegate.calls WHERE {' AND '.join(conditions)} "  # noqa: S608  names of ours
        "ORDER BY requested_at, tenant, call_id LIMIT {size:UInt32}"
    )


def _content(span: Span) -> tuple[str, ...]:
    return _CONTENT if span.personal and span.content else ()


def _row(names: Sequence[str], values: Sequence[Any]) -> Row:
    columns = dict(zip(names, values, strict=True))
    arrays = [columns.pop(f"findings_{name}") for name in _FINDING]
    findings = [dict(zip(_FINDING, one, strict=True)) for one in zip(*arrays, strict=True)]
    return Row(
        requested_us=int(columns.pop("requested_us")),
        completed_us=int(columns.pop("completed_us")),
        findings=msgspec.convert(findings, tuple[Finding, ...]),
        columns=columns,
    )


_SAME: Final = (
    *("call_id", "root_call_id", "tenant", "region", "status", "subject_id", "agent", "session_id", "protocol"),
    *("edge", "method", "server", "target", "mode", "decision", "stage", "reason", "message", "bundle", "release"),
    *("masked", "policy_us", "upstream_us", "total_us", "arguments_bytes", "arguments_digest", "result_bytes"),
    "result_digest",
)


def activity_of_row(row: Row) -> Activity:
    """Under the id of the event that ended it: what the topic `ocsf` says of the call has the same."""
    columns = row.columns
    return Activity(
        uid=columns["completed_event"] or columns["abandoned_event"] or columns["requested_event"],
        requested_us=row.requested_us,
        ended_us=row.completed_us,
        login=columns.get("login", ""),
        issuer=columns.get("issuer", ""),
        rules=tuple(columns["rules"]),
        groups=tuple(columns["groups"]),
        labels=tuple(columns["labels"]),
        findings=row.findings,
        error_code=columns["error_code"] or 0,
        is_erased=bool(columns["is_erased"]),
        **{name: columns[name] for name in _SAME},
    )
