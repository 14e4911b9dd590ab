"""Compares the rows of `calls` with what the records of each call say: people query rows, and roots cover records.

The expected row is made from the stored bytes by the audit consumer's own reading; every column is compared. An erasure
touches none of them: it destroys keys, so boxes stay as they are, and plain personal columns as the bytes have them.
What may be large comes as its hash. Counterpart: `verifying.py`, which proves the records.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from tidegate.analytics.port import Analytics
from tidegate.audit.holdings import Wrong
from tidegate.log.port import Delivered

PAGE_CALLS = 2_000
RECORDS_PER_CALL_MAX = 16  # three, and what was written again
MISSING_MAX = 1_000
SETTLED_US = 60_000_000  # rows are inserted before their records are: younger ones are left for the next time
DAY_US = 86_400_000_000
TIMES = ("requested_at", "abandoned_at", "completed_at")
SIDES = tuple(
    f"{side}_{name}" for side in ("requested", "completed") for name in ("mode", "stage", "reason", "message")
)
COLUMNS = (
    *("call_id", "tenant", "root_call_id", "region", "edge", "subject_id", "agent", "session_id", "protocol"),
    *("protocol_session_id", "method", "server", "target", "decision", "bundle", "labels", "version", "outcome"),
    *("error_code", "release", "catalog", "groups", "control_epoch", "arguments_bytes", "arguments_digest"),
    *("result_bytes", "result_digest", "policy_us", "upstream_us", "total_us", "masked", "requested_rules"),
    *("completed_rules", "requested_event", "abandoned_event", "completed_event", *SIDES),
    *("arguments_kept", "arguments_capture", "arguments_fingerprints", "result_capture", "result_fingerprints"),
    *("request_kid", "completion_kid", "issuer", "subject", "login", "claimed_client", "address"),
    *("role", "principal_kind", "taint", "facts", "approval_id", "retry_after_ms", "records", "cost_micros"),
)
HASHED = ("arguments", "result", "inputs", "request_box", "completion_box")
MATCHES = ("arguments_findings", "result_findings")
SHADOWS = "shadows"
NAMES = (*COLUMNS, *HASHED, *MATCHES, SHADOWS, *TIMES)
_SELECTED = ", ".join(
    [
        *COLUMNS,
        *(f"if({name} = '', '', lower(hex(SHA256({name}))))" for name in HASHED),
        *(f"arrayMap(one -> [one.1, one.2, one.3, one.4, toString(one.5)], {name})" for name in MATCHES),
        f"arrayMap(one -> arrayConcat([one.1, toString(one.2), one.3, one.4], one.5), {SHADOWS})",
        *(f"toUnixTimestamp64Micro({name})" for name in TIMES),
    ]
)
_PERIOD = "BETWEEN fromUnixTimestamp64Micro({from:Int64}) AND fromUnixTimestamp64Micro({to:Int64})"

Row = Mapping[str, Any]
Key = tuple[str, str]  # tenant and id of a call: an id alone is what its writer says


async def wrong_calls(analytics: Analytics, from_us: int, to_us: int, now_us: int) -> AsyncIterator[tuple[int, Wrong]]:
    """Each with the time of its call: rows that say something else than the call's records, rows without, and none."""
    period = {"from": from_us, "to": min(to_us, now_us - SETTLED_US)}
    async for page in _pages(analytics, period):
        expected = expected_rows(await _records(analytics, page))
        for row in page:
            if (wrong := judge(row, expected.get((row["tenant"], row["call_id"])))) is not None:
                yield row["requested_at"], wrong
    answer = await analytics.query(
        "SELECT writer, seq, event_id, call_id, toUnixTimestamp64Micro(time) FROM tidegate.events "  # noqa: S608
        f"WHERE topic = 'calls' AND time {_PERIOD} AND (tenant, call_id) NOT IN "
        "(SELECT tenant, call_id FROM tidegate.calls_raw "
        "WHERE requested_at BETWEEN fromUnixTimestamp64Micro({before:Int64}) AND fromUnixTimestamp64Micro({to:Int64})) "
        "ORDER BY time LIMIT {limit:UInt32}",
        period | {"before": max(0, from_us - DAY_US), "limit": MISSING_MAX},
    )
    for writer, seq, event_id, call_id, time_us in answer.rows:
        yield time_us, Wrong("missing", writer, seq, event_id, f"call {call_id} has no row in `calls`")


def expected_rows(records: Sequence[Delivered]) -> dict[Key, Row]:
    """By call: the row that its records make. As the table merges, each column is a maximum. Empty where a call has
    more records than are read of one.
    """
    from tidegate_audit_consumer.rows import open_batch

    columns = open_batch(records).calls
    places: dict[Key, list[int]] = {}
    for place, key in enumerate(zip(columns.get("tenant", ()), columns.get("call_id", ()), strict=True)):
        places.setdefault(key, []).append(place)
    wanted = [(name, columns[name], _SAID.get(name, _greatest)) for name in NAMES] if columns else []
    return {
        key: {name: said([values[place] for place in at]) for name, values, said in wanted}
        if len(at) <= RECORDS_PER_CALL_MAX
        else {}
        for key, at in places.items()
    }


def judge(row: Row, expected: Row | None) -> Wrong | None:
    """Of one call; None where the row says what its records say."""
    if expected is None:
        sentence = f"the row of call {row['call_id']} in `calls` rests on no record"
        return Wrong("unsealed", "", 0, row["call_id"], sentence)
    if not expected:
        sentence = (
            f"call {row['call_id']} has more than {RECORDS_PER_CALL_MAX} records, so its row in `calls` is not judged"
        )
        return Wrong("misplaced", "", 0, row["call_id"], sentence)
    differing = [name for name, value in expected.items() if _plain(row[name]) != value]
    if not differing:
        return None
    sentence = f"the row of call {row['call_id']} in `calls` does not say what its records say: {', '.join(differing)}"
    return Wrong("misplaced", "", 0, row["call_id"], sentence)


async def _pages(analytics: Analytics, period: Mapping[str, int]) -> AsyncIterator[Sequence[Row]]:
    after: tuple[int, str, str] = (period["from"] - 1, "", "")
    while True:
        answer = await analytics.query(
            f"SELECT {_SELECTED} FROM tidegate.calls_raw FINAL WHERE requested_at {_PERIOD} "  # noqa: S608
            "AND greatest(completed_at, abandoned_at) <= fromUnixTimestamp64Micro({to:Int64}) "
            "AND (toUnixTimestamp64Micro(requested_at), tenant, call_id) > ({at:Int64}, {tenant:String}, {id:String}) "
            "ORDER BY requested_at, tenant, call_id LIMIT {limit:UInt32}",
            {**period, "at": after[0], "tenant": after[1], "id": after[2], "limit": PAGE_CALLS},
        )
        if not answer.rows:
            return
        page = [dict(zip(NAMES, row, strict=True)) for row in answer.rows]
        yield page
        after = (page[-1]["requested_at"], page[-1]["tenant"], page[-1]["call_id"])


async def _records(analytics: Analytics, page: Sequence[Row]) -> list[Delivered]:
    answer = await analytics.query(
        "SELECT hex(raw) FROM tidegate.events WHERE topic = 'calls' AND call_id IN {ids:Array(String)} "  # noqa: S608
        f"AND tenant IN {{tenants:Array(String)}} AND time {_PERIOD} "
        "ORDER BY time, event_id LIMIT {most:UInt32} BY tenant, call_id",
        {
            "tenants": sorted({row["tenant"] for row in page}),
            "ids": [row["call_id"] for row in page],
            "from": min(row["requested_at"] for row in page) - DAY_US,
            "to": max(max(row[name] for name in TIMES) for row in page) + DAY_US,
            "most": RECORDS_PER_CALL_MAX + 1,
        },
    )
    return [Delivered("calls", 0, at, b"", bytes.fromhex(raw), (), 0) for at, (raw,) in enumerate(answer.rows)]


def _greatest(values: Sequence[Any]) -> Any:
    said = [_plain(value) for value in values if value is not None]
    return max(said) if said else None


def _hash(values: Sequence[Any]) -> str:
    """Of the greatest text, as ClickHouse gives it."""
    greatest = max(value.encode() if isinstance(value, str) else value for value in values)
    return hashlib.sha256(greatest).hexdigest() if greatest else ""


def _matches(values: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple((*texts, str(count)) for *texts, count in max(tuple(value) for value in values))


def _shadows(values: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple((one[0], str(one[1]), one[2], one[3], *one[4]) for one in max(tuple(value) for value in values))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return int(value) if value is True or value is False else value


_SAID: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    **dict.fromkeys(HASHED, _hash),
    **dict.fromkeys(MATCHES, _matches),
    SHADOWS: _shadows,
}
