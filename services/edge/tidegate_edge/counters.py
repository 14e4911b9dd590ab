"""What the edge counts. Plain integers on the hot path; read by Prometheus when it asks (`EdgeCollector`)."""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Gauges = Callable[[], dict[str, float]]

_GAUGES = {
    "tidegate_calls_in_flight": "Calls forwarded and not yet answered",
    "tidegate_connections": "Open client connections",
    "tidegate_streams": "GET streams and subscriptions that are open",
    "tidegate_questions": "Questions put to legacy clients and not yet answered",
    "tidegate_approvals": "Approvals that this edge knows of, whatever became of them, until they expire",
    "tidegate_pending_records": "Records handed over and not yet durable",
    "tidegate_spool_backlog_records": "Records durable here and not yet in the log",
    "tidegate_spool_backlog_bytes": "Bytes durable here and not yet in the log",
    "tidegate_log_unheard_seconds": "Since it was last known that the log holds no more than this edge obeys",
    "tidegate_kept_state_lost": "1 while what the log told cannot be kept on this disk",
    "tidegate_kept_state_stale": "1 while this disk has older quarantines, and can neither be written nor cleared",
    "tidegate_subject_keys_unpublished": "Keys of subjects, durable here and not yet in the log",
    "tidegate_spool_backlog_age_seconds": "Age of the oldest record that is durable here and not yet in the log",
    "tidegate_spool_fault": "1 while records cannot be shipped to the log",
    "tidegate_spool_full": "1 while the spool is so full that calls are refused",
    "tidegate_spool_damaged": "Losses found in the spool since the start: stretches of it that could not be read",
    "tidegate_spool_set_aside_files": "Files of the spool that keep what could not be read",
    "tidegate_spool_syncs": "Writes to the spool that were synced since the start",
    "tidegate_strict_batches": "Batches of strict records that the log acknowledged since the start",
    "tidegate_bundle_release": "Number of the ruling release; 0 before the first",
    "tidegate_canary_release": "Number of the canary's release; 0 where none rules anybody on this edge",
    "tidegate_limit_leases": "Counters of limits of which this edge holds a part",
    "tidegate_limit_exchanges": "Times that the session store was asked about limits since the start",
    "tidegate_limit_exchanges_failed": "Times that it did not answer",
    "tidegate_limit_uncounted": "Calls that passed uncounted because the session store was away",
    "tidegate_tools_held": "Tools that ruling bundles hold back because of their definition",
    "tidegate_quarantines": "Quarantines in force",
}


class Counters:
    """Since start."""

    def __init__(self) -> None:
        self.by_decision: Counter[str] = Counter()
        self.by_outcome: Counter[str] = Counter()
        self.refused_requests: Counter[str] = Counter()
        self.limited: Counter[tuple[str, str]] = Counter()  # by limit and reason
        self.unrecorded = 0
        self.lost_async = 0
        self.shadows_failed = 0

    def decided(self, decision: str) -> None:
        self.by_decision[decision] += 1

    def lose_async(self) -> None:
        self.lost_async += 1

    def ended(self, outcome: str) -> None:
        self.by_outcome[outcome] += 1


class EdgeCollector(Collector):
    """Every metric of the edge with unit and meaning."""

    def __init__(self, counters: Counters, gauges: Gauges) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        decisions = CounterMetricFamily("tidegate_calls", "Calls recorded, by decision", labels=["decision"])
        for decision, count in counters.by_decision.items():
            decisions.add_metric([decision], count)
        yield decisions
        outcomes = CounterMetricFamily(
            "tidegate_calls_ended", "Forwarded calls that ended, by outcome", labels=["outcome"]
        )
        for outcome, count in counters.by_outcome.items():
            outcomes.add_metric([outcome], count)
        yield outcomes
        refused = CounterMetricFamily(
            "tidegate_requests_refused", "Requests that never became a call, by reason", labels=["reason"]
        )
        for reason, count in counters.refused_requests.items():
            refused.add_metric([reason], count)
        yield refused
        limited = CounterMetricFamily(
            "tidegate_limited", "Calls refused by a limit, by its id and reason", labels=["limit", "reason"]
        )
        for (limit, reason), count in counters.limited.items():
            limited.add_metric([limit, reason], count)
        yield limited
        yield CounterMetricFamily(
            "tidegate_unrecorded", "Calls refused because no durable record could be made", value=counters.unrecorded
        )
        yield CounterMetricFamily(
            "tidegate_async_lost", "Records of async tools that failed to become durable", value=counters.lost_async
        )
        yield CounterMetricFamily(
            "tidegate_shadows_failed",
            "Times that rules beside the ruling ones could not be evaluated",
            value=counters.shadows_failed,
        )
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(name, _GAUGES[name], value=value)
