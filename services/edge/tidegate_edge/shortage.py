"""What a caller is told of a limit: a sentence with the time, details for programs, and header lines. Pure.

Headers are those of draft-ietf-httpapi-ratelimit-headers, with Retry-After (RFC 9110 §10.2.3) where the time is known.
"""

from typing import Any, Final

from tidegate.policy.budgeting import Meter
from tidegate.policy.budgets import MICROS, Measured
from tidegate.sessions.budgets import Share
from tidegate_edge.calls import Ongoing
from tidegate_edge.purses import AWAY_S, Shortage

RATE_LIMITED: Final = "rate-limited"
EXHAUSTED: Final = "budget-exhausted"
TOO_MANY: Final = "too-many-at-once"
UNCOUNTABLE: Final = "limits-unavailable"
_REASONS: Final[dict[Measured, str]] = {"calls": RATE_LIMITED, "concurrent": TOO_MANY}
_UNITS: Final[dict[Measured, str]] = {"daily-bytes": "content-bytes", "concurrent": "concurrent-requests"}
_DAY_S: Final = 86_400
_PERIODS: Final = {1_000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day"}


def refuse(call: Ongoing, short: Shortage) -> str:
    """The call is refused as limited. The reason's code."""
    meter, share = short
    reason = UNCOUNTABLE if share is None else _REASONS.get(meter.measure.of, EXHAUSTED)
    call.refuse("limit", reason, _sentence(meter, share), "limited")
    call.rules = (meter.limit.id,)
    call.short = short
    call.retry_after_ms = int(AWAY_S * 1000) if share is None else share.retry_ms
    return reason


def details(call: Ongoing) -> dict[str, Any]:
    """For `_meta["tidegate/decision"]`."""
    if call.short is None or not call.retry_after_ms:
        return {}
    return {"retry_after_s": _seconds(call.retry_after_ms)}


def headers(call: Ongoing) -> bytes:
    """Lines for the HTTP answer, each ending in CRLF; nothing for a call that is not limited."""
    if call.short is None:
        return b""
    meter, share = call.short
    retry = f"Retry-After: {_seconds(call.retry_after_ms)}\r\n" if call.retry_after_ms else ""
    if share is None:
        return retry.encode()
    measure = meter.measure
    name = meter.limit.id if measure.of == "calls" else f"{meter.limit.id}/{measure.of}"
    window = _window_s(meter)
    unit = f';qu="{_UNITS[measure.of]}"' if measure.of in _UNITS else ""
    policy = f'"{name}";q={measure.most}{unit}{f";w={window}" if window else ""}'
    rest = f'"{name}";r={share.left}' + (f";t={_seconds(call.retry_after_ms)}" if call.retry_after_ms else "")
    return f"RateLimit-Policy: {policy}\r\nRateLimit: {rest}\r\n{retry}".encode()


def _window_s(meter: Meter) -> int:
    """Of a bucket, the time in which a whole one comes."""
    measure = meter.measure
    if measure.of == "calls":
        return max(1, round(measure.most * measure.every_ms / measure.refill / 1000))
    return 0 if measure.of == "concurrent" else _DAY_S


def _sentence(meter: Meter, share: Share | None) -> str:
    limit = meter.limit
    if share is None:
        told = f"Whether the limit '{limit.id}' is reached cannot be told at the moment, so the call was not made. "
        return f"{told}Try again shortly."
    what = limit.reason or f"{_what(meter)} (limit '{limit.id}')."
    when = f"Try again in {in_words(_seconds(share.retry_ms))}." if share.retry_ms else ""
    if meter.measure.of == "concurrent":
        when = "Try again when one of them has ended."
    return " ".join(part for part in (what, when, limit.advice) if part)


def _what(meter: Meter) -> str:
    measure = meter.measure
    each = " and ".join(meter.limit.per)
    if measure.of == "calls":
        period = _PERIODS.get(measure.every_ms) or f"{measure.every_ms // 1000} seconds"
        return f"No more than {measure.refill} calls per {period} and {each} are permitted"
    if measure.of == "concurrent":
        return f"No more than {measure.most} calls at a time per {each} are permitted"
    most = f"{measure.most / MICROS:.2f}" if measure.of == "daily-cost" else f"{measure.most}"
    return f"The day's budget of {most} {measure.of.removeprefix('daily-')} per {each} is used up"


def in_words(seconds: int) -> str:
    """As people say it: 33 s, 2 min 5 s, 7 h 12 min."""
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _seconds(ms: int) -> int:
    return -(-ms // 1000)
