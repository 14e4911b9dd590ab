-- Numbers of calls as they compress best, and indexes for the questions that start from a person or a session. They apply to rows
-- written from now on; `ALTER TABLE tidegate.calls_raw MATERIALIZE INDEX by_session` (by_subject) builds one for those before.
ALTER TABLE tidegate.calls_raw
    MODIFY COLUMN arguments_bytes CODEC(T64, ZSTD(1)),
    MODIFY COLUMN result_bytes CODEC(T64, ZSTD(1)),
    MODIFY COLUMN policy_us CODEC(T64, ZSTD(1)),
    MODIFY COLUMN upstream_us CODEC(T64, ZSTD(1)),
    MODIFY COLUMN total_us CODEC(T64, ZSTD(1)),
    MODIFY COLUMN masked CODEC(T64, ZSTD(1)),
    MODIFY COLUMN release CODEC(T64, ZSTD(1)),
    MODIFY COLUMN control_epoch CODEC(T64, ZSTD(1));

ALTER TABLE tidegate.calls_raw
    ADD INDEX IF NOT EXISTS by_session session_id TYPE bloom_filter GRANULARITY 4,
    ADD INDEX IF NOT EXISTS by_subject subject_id TYPE bloom_filter GRANULARITY 4;
