-- The detector's conclusions (OCSF 2004). A finding's id is derived from its cause; of several statements about one finding
-- the last in the log stays.
CREATE TABLE IF NOT EXISTS tidegate.findings_raw
(
    finding_id String COMMENT 'The finding: metadata.uid, derived from its cause' CODEC(ZSTD(1)),
    tenant LowCardinality(String) COMMENT 'Whose finding this is',
    region LowCardinality(String) COMMENT 'Region of the detector',
    raised_at DateTime64(6, 'UTC') COMMENT 'When it was raised' CODEC(Delta, ZSTD(1)),
    rule LowCardinality(String) COMMENT 'The detector''s rule',
    severity LowCardinality(String) COMMENT 'info, low, medium, high or critical',
    title String COMMENT 'One line' CODEC(ZSTD(1)),
    message String COMMENT 'What was seen' CODEC(ZSTD(1)),
    subject_id String COMMENT 'Pseudonym of the subject' CODEC(ZSTD(1)),
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    session_id String COMMENT 'Governance session' CODEC(ZSTD(1)),
    server LowCardinality(String) COMMENT 'Upstream server concerned, if one',
    target LowCardinality(String) COMMENT 'Tool concerned, if one',
    call_ids Array(String) COMMENT 'The calls it rests on' CODEC(ZSTD(1)),
    ocsf String COMMENT 'The OCSF 2004 object, JSON, as published' CODEC(ZSTD(3)),
    offset UInt64 COMMENT 'Offset on the detections topic; of rows with one id the greatest stays',
    ingested_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When it was inserted here'
)
ENGINE = ReplacingMergeTree(offset)
ORDER BY (tenant, finding_id)
SETTINGS non_replicated_deduplication_window = 1000, min_bytes_for_wide_part = 134217728
COMMENT 'Findings; query the view tidegate.findings';

CREATE VIEW IF NOT EXISTS tidegate.findings
(
    finding_id String COMMENT 'The finding: metadata.uid, derived from its cause',
    tenant LowCardinality(String) COMMENT 'Whose finding this is',
    region LowCardinality(String) COMMENT 'Region of the detector',
    raised_at DateTime64(6, 'UTC') COMMENT 'When it was raised',
    rule LowCardinality(String) COMMENT 'The detector''s rule',
    severity LowCardinality(String) COMMENT 'info, low, medium, high or critical',
    title String COMMENT 'One line',
    message String COMMENT 'What was seen',
    subject_id String COMMENT 'Pseudonym of the subject',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    session_id String COMMENT 'Governance session',
    server LowCardinality(String) COMMENT 'Upstream server concerned, if one',
    target LowCardinality(String) COMMENT 'Tool concerned, if one',
    call_ids Array(String) COMMENT 'The calls it rests on',
    ocsf String COMMENT 'The OCSF 2004 object, JSON, as published',
    ingested_at DateTime64(6, 'UTC') COMMENT 'When it was inserted here'
)
AS SELECT
    finding_id, tenant, region, raised_at, rule, severity, title, message, subject_id, agent, session_id, server, target,
    call_ids, ocsf, ingested_at
FROM tidegate.findings_raw FINAL;
