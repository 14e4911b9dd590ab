-- Every event as stored. The key is the event's id, so that a redelivery replaces itself whatever its offset; ids are UUIDv7
-- as text, which sorts by time. The partition is a function of the id as well: equal keys never meet in two partitions.
-- Of two events with one id the one that the log took first stays: a later one cannot rewrite history.
CREATE TABLE IF NOT EXISTS tidegate.events_raw
(
    event_id String COMMENT 'Identity of the event: UUIDv7; of a finding: derived from its cause' CODEC(ZSTD(1)),
    type LowCardinality(String) COMMENT 'What happened, with the version of its schema, e.g. call.requested.v1',
    tenant LowCardinality(String) COMMENT 'Whose event this is',
    region LowCardinality(String) COMMENT 'Region of the process that wrote it',
    time DateTime64(6, 'UTC') COMMENT 'When it happened, by the writer''s clock' CODEC(Delta, ZSTD(1)),
    writer LowCardinality(String) COMMENT 'The hash chain it belongs to: edge, spool and epoch; empty where the event is not chained',
    seq UInt64 COMMENT 'Gap-free number within the writer''s chain, from 1; 0 where the event is not chained' CODEC(Delta, ZSTD(1)),
    prev String COMMENT 'SHA-256, hex, of the writer''s previous event as stored; empty before the first' CODEC(ZSTD(1)),
    hash String COMMENT 'SHA-256, hex, of raw' CODEC(ZSTD(1)),
    subject_id String COMMENT 'Pseudonym of the subject; empty where the event has none' CODEC(ZSTD(1)),
    agent LowCardinality(String) COMMENT 'Agent, from the token; empty where the event has none',
    session_id String COMMENT 'Governance session; empty where the event has none' CODEC(ZSTD(1)),
    call_id String COMMENT 'Call; empty where the event is not about one call' CODEC(ZSTD(1)),
    server LowCardinality(String) COMMENT 'Upstream server; empty where the event has none',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name; empty where the event has none',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited for events of calls, else empty',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case, where the event has one',
    topic LowCardinality(String) COMMENT 'Topic of the log it was read from, without prefix',
    partition UInt32 COMMENT 'Partition of the log it was read from',
    offset UInt64 COMMENT 'Offset in that partition' CODEC(Delta, ZSTD(1)),
    logged_at DateTime64(6, 'UTC') COMMENT 'When the log took it' CODEC(Delta, ZSTD(1)),
    raw String COMMENT 'The stored bytes, exactly; hash covers them' CODEC(ZSTD(3)),
    ingested_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When it was inserted here' CODEC(Delta, ZSTD(1)),
    precedence UInt64 DEFAULT 18446744073709551615 - offset COMMENT 'Of rows with one id the greatest stays: the first that the log took' CODEC(Delta, ZSTD(1)),
    INDEX by_time time TYPE minmax GRANULARITY 1,
    INDEX by_offset offset TYPE minmax GRANULARITY 1,
    INDEX by_event_id event_id TYPE bloom_filter GRANULARITY 4
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(UUIDv7ToDateTime(toUUIDOrZero(event_id), 'UTC'))
ORDER BY (tenant, event_id)
SETTINGS non_replicated_deduplication_window = 1000, min_bytes_for_wide_part = 134217728
COMMENT 'Every event; query the view tidegate.events';

CREATE VIEW IF NOT EXISTS tidegate.events
(
    event_id String COMMENT 'Identity of the event: UUIDv7; of a finding: derived from its cause',
    type LowCardinality(String) COMMENT 'What happened, with the version of its schema, e.g. call.requested.v1',
    tenant LowCardinality(String) COMMENT 'Whose event this is',
    region LowCardinality(String) COMMENT 'Region of the process that wrote it',
    time DateTime64(6, 'UTC') COMMENT 'When it happened, by the writer''s clock',
    writer LowCardinality(String) COMMENT 'The hash chain it belongs to: edge, spool and epoch; empty where the event is not chained',
    seq UInt64 COMMENT 'Gap-free number within the writer''s chain, from 1; 0 where the event is not chained',
    prev String COMMENT 'SHA-256, hex, of the writer''s previous event as stored; empty before the first',
    hash String COMMENT 'SHA-256, hex, of raw',
    subject_id String COMMENT 'Pseudonym of the subject; empty where the event has none',
    agent LowCardinality(String) COMMENT 'Agent, from the token; empty where the event has none',
    session_id String COMMENT 'Governance session; empty where the event has none',
    call_id String COMMENT 'Call; empty where the event is not about one call',
    server LowCardinality(String) COMMENT 'Upstream server; empty where the event has none',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name; empty where the event has none',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited for events of calls, else empty',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case, where the event has one',
    topic LowCardinality(String) COMMENT 'Topic of the log it was read from, without prefix',
    partition UInt32 COMMENT 'Partition of the log it was read from',
    offset UInt64 COMMENT 'Offset in that partition',
    logged_at DateTime64(6, 'UTC') COMMENT 'When the log took it',
    raw String COMMENT 'The stored bytes, exactly; hash covers them',
    ingested_at DateTime64(6, 'UTC') COMMENT 'When it was inserted here'
)
AS SELECT
    event_id, type, tenant, region, time, writer, seq, prev, hash, subject_id, agent, session_id, call_id, server, target,
    decision, reason, topic, partition, offset, logged_at, raw, ingested_at
FROM tidegate.events_raw FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;
