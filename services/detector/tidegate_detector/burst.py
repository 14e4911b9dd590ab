"""Burst: far more calls in one window than the principal makes in the windows in which it calls at all.

Every request counts, refused ones too. Windows are aligned to the clock and told by the events' own times, so records
of several writers may interleave: the newest windows stay open, older ones have closed into the baseline. Consecutive
windows over the bound are one burst and one finding. Pure: `observe` folds one event into one principal's history.
"""

from dataclasses import dataclass, field

from tidegate.events import CallRequested, FindingRaised
from tidegate.settings import Burst
from tidegate_detector.findings import CALLS_NAMED_MAX, raised

RULE = "burst"
WINDOWS_OPEN = 6
CALLS_TOLD_APART_MAX = 10_000  # in one window; beyond it a repeated record counts again
WEIGHT = 0.1  # of the newest window in the mean


@dataclass(slots=True)
class Window:
    """One window of one principal."""

    count: int = 0
    calls: dict[str, None] = field(default_factory=dict)  # in order of arrival
    over: bool = False  # reported, or part of a burst that was


@dataclass(slots=True)
class History:
    """One principal's calls. The mean is over windows with calls: after a silent night the morning is no burst."""

    mean: float = 0.0
    known: int = 0  # windows that the mean is made of
    newest: int = -1
    windows: dict[int, Window] = field(default_factory=dict)


def observe(history: History, event: CallRequested, settings: Burst) -> FindingRaised | None:
    """Count the call; the finding when its window reaches the bound and no neighbouring window did."""
    number = event.requested_us // int(settings.window_s * 1e6)
    history.newest = max(history.newest, number)
    first_open = history.newest - WINDOWS_OPEN + 1
    if number < first_open:
        return None  # too late to be judged
    _close_before(history, first_open, settings)
    window = history.windows.setdefault(number, Window())
    if event.call_id in window.calls:
        return None
    window.count += 1
    if len(window.calls) < CALLS_TOLD_APART_MAX:
        window.calls[event.call_id] = None
    if window.over or window.count < bound(history.mean, settings):
        return None
    window.over = True
    if any(near.over for near in _neighbours(history, number)):
        return None
    return _finding(event, number, window, history.mean, settings)


def bound(mean: float, settings: Burst) -> float:
    """Calls in one window that make it a burst. Who has no history is held to `calls_min`."""
    return max(settings.calls_min, settings.factor * mean)


def _neighbours(history: History, number: int) -> list[Window]:
    return [history.windows[near] for near in (number - 1, number + 1) if near in history.windows]


def _close_before(history: History, first_open: int, settings: Burst) -> None:
    """Fold old windows into the mean. A burst is learned, too, but slowly: no window counts over twice the usual."""
    for number in sorted(number for number in history.windows if number < first_open):
        counted = min(float(history.windows.pop(number).count), 2 * bound(history.mean, settings) / settings.factor)
        history.known += 1
        history.mean += max(WEIGHT, 1 / history.known) * (counted - history.mean)


def _finding(event: CallRequested, number: int, window: Window, mean: float, settings: Burst) -> FindingRaised:
    usual = f"its usual {mean:.1f}" if mean else "no history of its own"
    return raised(
        RULE,
        event,
        (str(number), str(settings.window_s)),
        severity=settings.severity,
        title="Burst of calls far over the principal's own baseline",
        message=(
            f"{event.agent} made {window.count} calls within {settings.window_s:g} s against {usual}; "
            f"the bound is {bound(mean, settings):g}. The last one was {event.server}/{event.target}."
        ),
        call_ids=tuple(window.calls)[:CALLS_NAMED_MAX],
    )
