"""What the audit consumer measures; each metric declared once."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Registered with the registry that is passed in; one consumer a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows = Counter("tidegate_audit_rows", "Rows inserted, by table", ["table"], registry=registry)
        self.batches = Counter("tidegate_audit_batches", "Batches stored and settled", registry=registry)
        self.skipped = Counter(
            "tidegate_audit_skipped_records", "Records not inserted because they were stored already", registry=registry
        )
        self.dead_letters = Counter(
            "tidegate_audit_dead_letters", "Records that could not be read, by reason", ["reason"], registry=registry
        )
        self.retries = Counter(
            "tidegate_audit_retries", "Batches tried again, by what failed", ["fault"], registry=registry
        )
        self.lag = Gauge(
            "tidegate_audit_lag_records", "Records in the log that are not delivered yet", registry=registry
        )
        self.delay_seconds = Gauge(
            "tidegate_audit_delay_seconds",
            "From the log's taking the last record settled to its settling",
            registry=registry,
        )
        self.insert_seconds = Histogram(
            "tidegate_audit_insert_seconds",
            "Time to store one batch in all its tables",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )


class IntegrityMetrics:
    """Of the sealer and the checker; registered with the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.holds = Gauge(
            "tidegate_integrity_sealing", "1 where this process is the one that seals", registry=registry
        )
        self.roots = Counter("tidegate_integrity_roots", "Roots sealed", registry=registry)
        self.events = Counter("tidegate_integrity_sealed_records", "Records put under roots", registry=registry)
        self.sealed_at = Gauge(
            "tidegate_integrity_sealed_timestamp_seconds", "When the last root was sealed here", registry=registry
        )
        self.breaches = Counter(
            "tidegate_integrity_breaches", "Gaps, forks, rewrites and losses that were found", registry=registry
        )
        self.unchained = Counter(
            "tidegate_integrity_unchained_records",
            "Records on the log that are under no root: unreadable, of no chain, or beyond any chain's bounds",
            registry=registry,
        )
        self.checked = Counter(
            "tidegate_integrity_checks", "Roots that ClickHouse was compared with", ["verdict"], registry=registry
        )
        self.faults = Counter("tidegate_integrity_faults", "Times that sealing or checking paused", registry=registry)


class KeyMetrics:
    """Of the feed of subjects' keys; registered with the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.keys = Gauge("tidegate_audit_subject_keys", "Keys with which ClickHouse opens calls", registry=registry)
        self.erased = Counter("tidegate_audit_subject_keys_erased", "Keys taken out of ClickHouse", registry=registry)
        self.unknown = Gauge(
            "tidegate_audit_subject_keys_unknown",
            "Keys that ClickHouse has and the log has not, though nobody erased them; more than 0: the wrong log?",
            registry=registry,
        )
        self.faults = Counter(
            "tidegate_audit_subject_key_faults",
            "Records of keys that were left out, by reason",
            ["fault"],
            registry=registry,
        )
