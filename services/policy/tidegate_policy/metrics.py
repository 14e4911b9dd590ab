"""What the service measures, read when Prometheus asks; each metric declared once."""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate_policy.approvals import Approver
from tidegate_policy.erasure import Eraser
from tidegate_policy.guarding import ACTOR
from tidegate_policy.state import ROLES, ControlPlane


class PolicyCollector(Collector):
    """Every metric of the policy service."""

    def __init__(self, state: ControlPlane, clock: Callable[[], int], eraser: Eraser, approver: Approver) -> None:
        self._state = state
        self._eraser = eraser
        self._approver = approver
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        state = self._state
        releases = GaugeMetricFamily(
            "tidegate_policy_release", "Number of the release that rules, by ring", labels=["ring"]
        )
        for ring in state.releases:
            if (current := state.current(ring)) is not None:
                releases.add_metric([ring], current.number)
        yield releases
        staged = GaugeMetricFamily(
            "tidegate_policy_staged_release", "Number of a canary or shadow in force", labels=["ring", "role"]
        )
        for ring in state.releases:
            for role in ROLES[1:]:
                if (current := state.current(ring, role)) is not None:
                    staged.add_metric([ring, role], current.number)
        yield staged
        taken_back = sum(release.actor == ACTOR for release in state.listed())
        yield CounterMetricFamily(
            "tidegate_policy_taken_back", "Releases that a guard made to take another one back", value=taken_back
        )
        counts = Counter(
            "current" if (now := state.current(edge.ring)) and now.number == edge.role("ruling").number else "behind"
            for edge in state.edges.values()
        )
        edges = GaugeMetricFamily("tidegate_policy_edges", "Edges heard of, by what they run", labels=["runs"])
        for runs in ("current", "behind"):
            edges.add_metric([runs], counts[runs])
        yield edges
        in_force = len(state.quarantines.current(self._clock()))
        yield GaugeMetricFamily("tidegate_policy_quarantines", "Quarantines in force", value=in_force)
        standing = Counter(one.state for one in self._approver.approvals.current(self._clock()))
        approvals = GaugeMetricFamily(
            "tidegate_policy_approvals", "Approvals within their time, by what became of them", labels=["state"]
        )
        for word in ("pending", "granted", "denied", "consumed"):
            approvals.add_metric([word], standing[word])
        yield approvals
        unfinished = self._eraser.unfinished
        erasures = GaugeMetricFamily(
            "tidegate_policy_erasures", "Erasures of subjects, by whether every key is off the log", labels=["state"]
        )
        erasures.add_metric(["unfinished"], unfinished)
        erasures.add_metric(["finished"], max(0, len(state.erasures) - unfinished))
        yield erasures
