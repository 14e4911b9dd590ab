-- The signed roots over the log, their leaves, and how ClickHouse compared with each: taken from the events themselves, so that
-- a rebuild from the log brings them back. What a root proves is proven by `tidegate verify` from the bytes in `raw`, never
-- from these columns.
-- One view looks at every event for these few; what it finds goes on to three tables, and is not kept here.
CREATE TABLE IF NOT EXISTS tidegate.integrity_events
(
    event_id String COMMENT 'Identity of the event',
    type LowCardinality(String) COMMENT 'root.sealed.v1 or root.checked.v1',
    time DateTime64(6, 'UTC') COMMENT 'When it happened',
    raw String COMMENT 'The stored bytes'
)
ENGINE = Null
COMMENT 'On the way from events_raw to roots, leaves and checks; always empty';

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.integrity_feed TO tidegate.integrity_events
(
    event_id String COMMENT 'As in integrity_events',
    type String COMMENT 'As in integrity_events',
    time DateTime64(6, 'UTC') COMMENT 'As in integrity_events',
    raw String COMMENT 'As in integrity_events'
)
AS SELECT event_id, type, time, raw
FROM tidegate.events_raw
WHERE topic = 'integrity';

CREATE TABLE IF NOT EXISTS tidegate.roots
(
    sealer LowCardinality(String) COMMENT 'Whose series of roots this is',
    number UInt64 COMMENT 'Gap-free number within the series, from 1',
    event_id String COMMENT 'The event that holds the root' CODEC(ZSTD(1)),
    sealed_at DateTime64(6, 'UTC') COMMENT 'When it was sealed',
    previous String COMMENT 'SHA-256, hex, of the root before; empty at the first' CODEC(ZSTD(1)),
    tree String COMMENT 'Root of the Merkle tree over the leaves, hex' CODEC(ZSTD(1)),
    leaves UInt64 COMMENT 'Runs of records that it covers',
    events UInt64 COMMENT 'Records that it covers',
    key_id LowCardinality(String) COMMENT 'The audit key that signed it',
    raw String COMMENT 'The event as stored: root, signature and leaves' CODEC(ZSTD(3))
)
ENGINE = ReplacingMergeTree
ORDER BY (sealer, number, event_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Signed roots; query the view tidegate.integrity';

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.roots_feed TO tidegate.roots
(
    sealer String COMMENT 'As in roots',
    number UInt64 COMMENT 'As in roots',
    event_id String COMMENT 'As in roots',
    sealed_at DateTime64(6, 'UTC') COMMENT 'As in roots',
    previous String COMMENT 'As in roots',
    tree String COMMENT 'As in roots',
    leaves UInt64 COMMENT 'As in roots',
    events UInt64 COMMENT 'As in roots',
    key_id String COMMENT 'As in roots',
    raw String COMMENT 'As in roots'
)
AS SELECT
    JSONExtractString(raw, 'sealer') AS sealer,
    JSONExtractUInt(raw, 'number') AS number,
    event_id,
    time AS sealed_at,
    JSONExtractString(raw, 'root', 'previous') AS previous,
    JSONExtractString(raw, 'root', 'tree') AS tree,
    JSONExtractUInt(raw, 'root', 'leaves') AS leaves,
    JSONExtractUInt(raw, 'root', 'events') AS events,
    JSONExtractString(raw, 'key_id') AS key_id,
    raw
FROM tidegate.integrity_events
WHERE type = 'root.sealed.v1';

CREATE TABLE IF NOT EXISTS tidegate.leaves
(
    writer String COMMENT 'The hash chain' CODEC(ZSTD(1)),
    first UInt64 COMMENT 'Number of the first record',
    last UInt64 COMMENT 'Number of the last record',
    prev String COMMENT 'SHA-256, hex, that the first record names before it' CODEC(ZSTD(1)),
    head String COMMENT 'SHA-256, hex, of the last record' CODEC(ZSTD(1)),
    tree String COMMENT 'Root of the Merkle tree over the records'' SHA-256, hex' CODEC(ZSTD(1)),
    first_at DateTime64(6, 'UTC') COMMENT 'Least time of the records',
    last_at DateTime64(6, 'UTC') COMMENT 'Greatest time of the records',
    sealer LowCardinality(String) COMMENT 'The series of the root',
    number UInt64 COMMENT 'The root'
)
ENGINE = ReplacingMergeTree
ORDER BY (writer, first, last, tree, sealer, number)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Runs of records under roots';

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.leaves_feed TO tidegate.leaves
(
    writer String COMMENT 'As in leaves',
    first UInt64 COMMENT 'As in leaves',
    last UInt64 COMMENT 'As in leaves',
    prev String COMMENT 'As in leaves',
    head String COMMENT 'As in leaves',
    tree String COMMENT 'As in leaves',
    first_at DateTime64(6, 'UTC') COMMENT 'As in leaves',
    last_at DateTime64(6, 'UTC') COMMENT 'As in leaves',
    sealer String COMMENT 'As in leaves',
    number UInt64 COMMENT 'As in leaves'
)
AS SELECT
    leaf.writer AS writer, leaf.first AS first, leaf.last AS last, leaf.prev AS prev, leaf.head AS head, leaf.tree AS tree,
    fromUnixTimestamp64Micro(leaf.first_us, 'UTC') AS first_at,
    fromUnixTimestamp64Micro(leaf.last_us, 'UTC') AS last_at,
    JSONExtractString(raw, 'sealer') AS sealer,
    JSONExtractUInt(raw, 'number') AS number
FROM tidegate.integrity_events
ARRAY JOIN JSONExtract(
    raw, 'leaves',
    'Array(Tuple(writer String, first UInt64, last UInt64, prev String, head String, tree String, first_us Int64, last_us Int64))') AS leaf
WHERE type = 'root.sealed.v1';

CREATE TABLE IF NOT EXISTS tidegate.checks
(
    sealer LowCardinality(String) COMMENT 'The series of the root',
    number UInt64 COMMENT 'The root',
    event_id String COMMENT 'The event that holds the check' CODEC(ZSTD(1)),
    checked_at DateTime64(6, 'UTC') COMMENT 'When ClickHouse was compared with the root',
    verdict LowCardinality(String) COMMENT 'whole or broken',
    wrong UInt64 COMMENT 'Records that were not what was sealed',
    problem LowCardinality(String) COMMENT 'What is wrong with the first of them: missing, altered, fork, gap, ...',
    writer String COMMENT 'The chain of the first of them' CODEC(ZSTD(1)),
    seq UInt64 COMMENT 'Its number',
    message String COMMENT 'A sentence about it' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (sealer, number, event_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Comparisons of ClickHouse with roots; query the view tidegate.integrity';

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.checks_feed TO tidegate.checks
(
    sealer String COMMENT 'As in checks',
    number UInt64 COMMENT 'As in checks',
    event_id String COMMENT 'As in checks',
    checked_at DateTime64(6, 'UTC') COMMENT 'As in checks',
    verdict String COMMENT 'As in checks',
    wrong UInt64 COMMENT 'As in checks',
    problem String COMMENT 'As in checks',
    writer String COMMENT 'As in checks',
    seq UInt64 COMMENT 'As in checks',
    message String COMMENT 'As in checks'
)
AS SELECT
    JSONExtractString(raw, 'sealer') AS sealer,
    JSONExtractUInt(raw, 'number') AS number,
    event_id,
    time AS checked_at,
    JSONExtractString(raw, 'verdict') AS verdict,
    JSONExtractUInt(raw, 'wrong') AS wrong,
    JSONExtractString(raw, 'problem') AS problem,
    JSONExtractString(raw, 'of_writer') AS writer,
    JSONExtractUInt(raw, 'of_seq') AS seq,
    JSONExtractString(raw, 'message') AS message
FROM tidegate.integrity_events
WHERE type = 'root.checked.v1';

CREATE VIEW IF NOT EXISTS tidegate.integrity
(
    sealer LowCardinality(String) COMMENT 'Whose series of roots this is',
    number UInt64 COMMENT 'Number of the root within the series',
    sealed_at DateTime64(6, 'UTC') COMMENT 'When it was sealed',
    events UInt64 COMMENT 'Records that it covers',
    leaves UInt64 COMMENT 'Runs of records that it covers',
    tree String COMMENT 'Root of the Merkle tree over the leaves, hex',
    previous String COMMENT 'SHA-256, hex, of the root before; empty at the first',
    key_id LowCardinality(String) COMMENT 'The audit key that signed it',
    verdict LowCardinality(String) COMMENT 'whole: ClickHouse held what was sealed; broken: it did not; unchecked: not compared yet',
    checked_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When ClickHouse was last compared with it; NULL before',
    wrong UInt64 COMMENT 'Records that were not what was sealed',
    problem LowCardinality(String) COMMENT 'What is wrong with the first of them: missing, altered, fork, gap, ...; empty where nothing is',
    writer String COMMENT 'The chain of the first of them',
    seq UInt64 COMMENT 'Its number',
    message String COMMENT 'A sentence about it'
)
AS SELECT
    root.sealer AS sealer, root.number AS number, root.sealed_at AS sealed_at, root.events AS events,
    root.leaves AS leaves, root.tree AS tree, root.previous AS previous, root.key_id AS key_id,
    if(checked.checked = 0, 'unchecked', checked.verdict) AS verdict,
    if(checked.checked = 0, NULL, checked.checked_at) AS checked_at,
    checked.wrong AS wrong, checked.problem AS problem, checked.writer AS writer, checked.seq AS seq,
    checked.message AS message
FROM (SELECT * FROM tidegate.roots FINAL) AS root
LEFT JOIN (
    SELECT
        sealer, number, count() AS checked, max(checks.checked_at) AS checked_at,
        argMax(checks.verdict, checks.checked_at) AS verdict, argMax(checks.wrong, checks.checked_at) AS wrong,
        argMax(checks.problem, checks.checked_at) AS problem, argMax(checks.writer, checks.checked_at) AS writer,
        argMax(checks.seq, checks.checked_at) AS seq, argMax(checks.message, checks.checked_at) AS message
    FROM tidegate.checks FINAL
    GROUP BY sealer, number
) AS checked ON checked.sealer = root.sealer AND checked.number = root.number;
