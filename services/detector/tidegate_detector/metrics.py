"""What the detector measures; each metric declared once."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """Registered with the registry that is passed in; one detector a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.records = Counter(
            "tidegate_detector_records", "Records read, by what became of them", ["outcome"], registry=registry
        )
        self.findings = Counter(
            "tidegate_detector_findings", "Findings published", ["rule", "severity"], registry=registry
        )
        self.quarantines = Counter(
            "tidegate_detector_quarantines", "Quarantines imposed, by scope", ["scope"], registry=registry
        )
        self.evicted = Counter(
            "tidegate_detector_evicted", "What had to be forgotten for want of room", ["what"], registry=registry
        )
        self.principals = Gauge("tidegate_detector_principals", "Principals in memory", registry=registry)
        self.lag = Gauge("tidegate_detector_lag_records", "Records in the log not delivered yet", registry=registry)
        self.delay_seconds = Gauge(
            "tidegate_detector_delay_seconds", "From the log's taking a record to its being judged", registry=registry
        )
        self.faults = Counter("tidegate_detector_log_faults", "Times the log had to be opened again", registry=registry)
