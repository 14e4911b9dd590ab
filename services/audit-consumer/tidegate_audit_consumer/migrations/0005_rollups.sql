-- Calls counted by minute and by hour: those with a last word (completed, refused, abandoned), each once at any time.
--
-- A counter that each insert adds to would count a redelivered event twice. So nothing is added up here: each insert of calls
-- marks their minutes and hours, and once one was quiet for rollup_grace_s (120 s; longer than any insert lasts) it is counted
-- anew from the merged rows of its calls, as one row that takes the place of the one before. The views calls_by_minute and
-- calls_by_hour read such a row only while it is younger than the last mark by that time; what is marked since is counted from
-- the calls while the query runs. Which is which is found once a query, so nothing is read from both sides or from neither.
-- The tables are a cache: emptied, they are filled again from calls_raw, and the views are right all the while.
CREATE TABLE IF NOT EXISTS tidegate.minutes_raw
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    minute DateTime('UTC') COMMENT 'Begin of the minute in which they were requested' CODEC(Delta, ZSTD(1)),
    rolled_at DateTime64(6, 'UTC') COMMENT 'When they were counted; the last count of a minute stays',
    region Array(String) COMMENT 'Region of the edge' CODEC(ZSTD(1)),
    agent Array(String) COMMENT 'Agent, from the token' CODEC(ZSTD(1)),
    method Array(String) COMMENT 'MCP method, e.g. tools/call' CODEC(ZSTD(1)),
    server Array(String) COMMENT 'Upstream server' CODEC(ZSTD(1)),
    target Array(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name' CODEC(ZSTD(1)),
    decision Array(String) COMMENT 'allow, deny, ask or limited' CODEC(ZSTD(1)),
    status Array(String) COMMENT 'As in calls; never pending' CODEC(ZSTD(1)),
    stage Array(String) COMMENT 'Stage that decided, as in calls' CODEC(ZSTD(1)),
    reason Array(String) COMMENT 'Reason code, kebab case' CODEC(ZSTD(1)),
    bundle Array(String) COMMENT 'Digest of the policy bundle that decided' CODEC(ZSTD(1)),
    rules Array(Array(String)) COMMENT 'Ids of the determining rules' CODEC(ZSTD(1)),
    calls Array(UInt64) COMMENT 'Calls with a last word: completed, refused or abandoned' CODEC(ZSTD(1)),
    flagged Array(UInt64) COMMENT 'Of these, calls in which inspection found something' CODEC(ZSTD(1)),
    masked Array(UInt64) COMMENT 'Values masked in answers' CODEC(ZSTD(1)),
    arguments_bytes Array(UInt64) COMMENT 'Bytes of arguments' CODEC(ZSTD(1)),
    result_bytes Array(UInt64) COMMENT 'Bytes of results as upstreams sent them' CODEC(ZSTD(1)),
    first_at Array(DateTime64(6, 'UTC')) COMMENT 'Request of the first of these calls' CODEC(ZSTD(1)),
    last_at Array(DateTime64(6, 'UTC')) COMMENT 'Request of the last of these calls' CODEC(ZSTD(1)),
    subjects Array(AggregateFunction(uniqCombined64, String)) COMMENT 'Distinct subjects; read with uniqCombined64Merge' CODEC(ZSTD(1)),
    sessions Array(AggregateFunction(uniqCombined64, String)) COMMENT 'Distinct sessions; read with uniqCombined64Merge' CODEC(ZSTD(1)),
    policy_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'Time spent deciding, of completed calls: 36 * log2(microseconds + 1); read as total_time' CODEC(ZSTD(1)),
    upstream_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'Time spent upstream, of calls that were forwarded and completed: 36 * log2(microseconds + 1); read as total_time' CODEC(ZSTD(1)),
    total_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'Time from accept to answer, of completed calls: 36 * log2(microseconds + 1), within one per cent; exp2(q / 36) - 1 of quantilesTimingMerge(0.5, 0.95, 0.99) is microseconds' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(rolled_at)
PARTITION BY toYYYYMM(minute)
ORDER BY (tenant, minute)
TTL minute + INTERVAL 92 DAY
SETTINGS index_granularity = 64
COMMENT 'Calls counted by minute: a row holds a whole minute, an element of its arrays one combination; query calls_by_minute';

CREATE TABLE IF NOT EXISTS tidegate.minutes_marks
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    minute DateTime('UTC') COMMENT 'Begin of the minute in which they were requested' CODEC(Delta, ZSTD(1)),
    marked_at DateTime64(6, 'UTC') COMMENT 'When a row of such a call was last inserted' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(marked_at)
PARTITION BY toYYYYMM(minute)
ORDER BY (tenant, minute)
TTL minute + INTERVAL 92 DAY
COMMENT 'Which minutes have to be counted again';

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.minutes_marks_feed TO tidegate.minutes_marks
(
    tenant String COMMENT 'As in minutes_marks',
    minute DateTime('UTC') COMMENT 'As in minutes_marks',
    marked_at DateTime64(6, 'UTC') COMMENT 'As in minutes_marks'
)
AS SELECT tenant, toStartOfMinute(requested_at) AS minute, now64(6, 'UTC') AS marked_at
FROM tidegate.calls_raw
GROUP BY tenant, minute;

INSERT INTO tidegate.minutes_marks SELECT tenant, toStartOfMinute(requested_at) AS minute, now64(6, 'UTC') AS marked_at
FROM tidegate.calls_raw
GROUP BY tenant, minute;

CREATE VIEW IF NOT EXISTS tidegate.minutes_live
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    minute DateTime('UTC') COMMENT 'Begin of the minute in which they were requested',
    region LowCardinality(String) COMMENT 'Region of the edge',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited',
    status LowCardinality(String) COMMENT 'As in calls; never pending',
    stage LowCardinality(String) COMMENT 'Stage that decided, as in calls',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle that decided',
    rules Array(String) COMMENT 'Ids of the determining rules',
    calls UInt64 COMMENT 'Calls with a last word: completed, refused or abandoned',
    flagged UInt64 COMMENT 'Of these, calls in which inspection found something',
    masked UInt64 COMMENT 'Values masked in answers',
    arguments_bytes UInt64 COMMENT 'Bytes of arguments',
    result_bytes UInt64 COMMENT 'Bytes of results as upstreams sent them',
    first_at DateTime64(6, 'UTC') COMMENT 'Request of the first of these calls',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last of these calls',
    subjects AggregateFunction(uniqCombined64, String) COMMENT 'Distinct subjects; read with uniqCombined64Merge',
    sessions AggregateFunction(uniqCombined64, String) COMMENT 'Distinct sessions; read with uniqCombined64Merge',
    policy_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent deciding, of completed calls: 36 * log2(microseconds + 1); read as total_time',
    upstream_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent upstream, of calls that were forwarded and completed: 36 * log2(microseconds + 1); read as total_time',
    total_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time from accept to answer, of completed calls: 36 * log2(microseconds + 1), within one per cent; exp2(q / 36) - 1 of quantilesTimingMerge(0.5, 0.95, 0.99) is microseconds'
)
AS SELECT
    one.tenant AS tenant, toStartOfMinute(one.requested_at) AS minute, one.region AS region, one.agent AS agent,
    one.method AS method, one.server AS server, one.target AS target, one.decision AS decision, one.status AS status,
    one.stage AS stage, one.reason AS reason, one.bundle AS bundle, one.rules AS rules, count() AS calls,
    countIf(notEmpty(one.found)) AS flagged, sum(one.masked) AS masked, sum(one.arguments_bytes) AS arguments_bytes,
    sum(one.result_bytes) AS result_bytes, min(one.requested_at) AS first_at, max(one.requested_at) AS last_at,
    uniqCombined64State(one.subject_id) AS subjects, uniqCombined64State(one.session_id) AS sessions,
    quantilesTimingStateIf(0.5, 0.95, 0.99)(toUInt32(round(log2(one.policy_us + 1) * 36)), version = 3) AS policy_time,
    quantilesTimingStateIf(0.5, 0.95, 0.99)(toUInt32(round(log2(one.upstream_us + 1) * 36)), one.upstream_us > 0) AS upstream_time,
    quantilesTimingStateIf(0.5, 0.95, 0.99)(toUInt32(round(log2(one.total_us + 1) * 36)), version = 3) AS total_time
FROM (
    SELECT
        tenant, requested_at, subject_id, session_id, region, agent, method, server, target, decision,
        multiIf(version = 3, outcome, decision = 'deny', 'denied', decision = 'ask', 'asked', decision = 'limited', 'limited', 'unknown') AS status,
        if(version = 3, completed_stage, requested_stage) AS stage,
        if(version = 3, completed_reason, requested_reason) AS reason,
        bundle,
        if(version = 3, completed_rules, requested_rules) AS rules,
        arrayConcat(arguments_findings, result_findings) AS found,
        masked, arguments_bytes, result_bytes, policy_us, upstream_us, total_us, version
    FROM tidegate.calls_raw FINAL
    WHERE version >= 2 OR decision != 'allow'
) AS one
GROUP BY
    tenant, minute, region, agent, method, server, target, decision, status, stage, reason, bundle, rules
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS tidegate.calls_by_minute
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    minute DateTime('UTC') COMMENT 'Begin of the minute in which they were requested',
    region LowCardinality(String) COMMENT 'Region of the edge',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited',
    status LowCardinality(String) COMMENT 'As in calls; never pending',
    stage LowCardinality(String) COMMENT 'Stage that decided, as in calls',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle that decided',
    rules Array(String) COMMENT 'Ids of the determining rules',
    calls UInt64 COMMENT 'Calls with a last word: completed, refused or abandoned',
    flagged UInt64 COMMENT 'Of these, calls in which inspection found something',
    masked UInt64 COMMENT 'Values masked in answers',
    arguments_bytes UInt64 COMMENT 'Bytes of arguments',
    result_bytes UInt64 COMMENT 'Bytes of results as upstreams sent them',
    first_at DateTime64(6, 'UTC') COMMENT 'Request of the first of these calls',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last of these calls',
    subjects AggregateFunction(uniqCombined64, String) COMMENT 'Distinct subjects; read with uniqCombined64Merge',
    sessions AggregateFunction(uniqCombined64, String) COMMENT 'Distinct sessions; read with uniqCombined64Merge',
    policy_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent deciding, of completed calls: 36 * log2(microseconds + 1); read as total_time',
    upstream_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent upstream, of calls that were forwarded and completed: 36 * log2(microseconds + 1); read as total_time',
    total_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time from accept to answer, of completed calls: 36 * log2(microseconds + 1), within one per cent; exp2(q / 36) - 1 of quantilesTimingMerge(0.5, 0.95, 0.99) is microseconds'
)
AS WITH
    toStartOfDay(now('UTC')) - toIntervalDay(90) AS kept_from,
    (SELECT if(count() = 0, 120, argMax(value, set_at)) FROM tidegate.parameters WHERE name = 'rollup_grace_s') AS grace_s,
    (
        SELECT groupArray((tenant, minute))
        FROM (SELECT tenant, minute, max(marked_at) AS marked FROM tidegate.minutes_marks GROUP BY tenant, minute) AS mark
        LEFT JOIN (SELECT tenant, minute, max(rolled_at) AS rolled FROM tidegate.minutes_raw GROUP BY tenant, minute) AS counted USING (tenant, minute)
        WHERE rolled <= marked + toIntervalSecond(grace_s)
    ) AS open
SELECT
    tenant, minute, region_ AS region, agent_ AS agent, method_ AS method, server_ AS server, target_ AS target,
    decision_ AS decision, status_ AS status, stage_ AS stage, reason_ AS reason, bundle_ AS bundle, rules_ AS rules,
    calls_ AS calls, flagged_ AS flagged, masked_ AS masked, arguments_bytes_ AS arguments_bytes,
    result_bytes_ AS result_bytes, first_at_ AS first_at, last_at_ AS last_at, subjects_ AS subjects,
    sessions_ AS sessions, policy_time_ AS policy_time, upstream_time_ AS upstream_time, total_time_ AS total_time
FROM tidegate.minutes_raw AS raw FINAL
ARRAY JOIN
    raw.region AS region_, raw.agent AS agent_, raw.method AS method_, raw.server AS server_, raw.target AS target_,
    raw.decision AS decision_, raw.status AS status_, raw.stage AS stage_, raw.reason AS reason_,
    raw.bundle AS bundle_, raw.rules AS rules_, raw.calls AS calls_, raw.flagged AS flagged_, raw.masked AS masked_,
    raw.arguments_bytes AS arguments_bytes_, raw.result_bytes AS result_bytes_, raw.first_at AS first_at_,
    raw.last_at AS last_at_, raw.subjects AS subjects_, raw.sessions AS sessions_, raw.policy_time AS policy_time_,
    raw.upstream_time AS upstream_time_, raw.total_time AS total_time_
WHERE (tenant, minute) NOT IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(open) AS pair)) AND minute >= kept_from
UNION ALL
SELECT
    tenant, minute, region, agent, method, server, target, decision, status, stage, reason, bundle, rules, calls,
    flagged, masked, arguments_bytes, result_bytes, first_at, last_at, subjects, sessions, policy_time,
    upstream_time, total_time
FROM tidegate.minutes_live
WHERE (tenant, minute) IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(open) AS pair)) AND minute >= kept_from;

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.minutes_refresh REFRESH EVERY 1 MINUTE APPEND TO tidegate.minutes_raw
(
    tenant String COMMENT 'As in minutes_raw',
    minute DateTime('UTC') COMMENT 'As in minutes_raw',
    rolled_at DateTime64(6, 'UTC') COMMENT 'As in minutes_raw',
    region Array(String) COMMENT 'As in minutes_raw',
    agent Array(String) COMMENT 'As in minutes_raw',
    method Array(String) COMMENT 'As in minutes_raw',
    server Array(String) COMMENT 'As in minutes_raw',
    target Array(String) COMMENT 'As in minutes_raw',
    decision Array(String) COMMENT 'As in minutes_raw',
    status Array(String) COMMENT 'As in minutes_raw',
    stage Array(String) COMMENT 'As in minutes_raw',
    reason Array(String) COMMENT 'As in minutes_raw',
    bundle Array(String) COMMENT 'As in minutes_raw',
    rules Array(Array(String)) COMMENT 'As in minutes_raw',
    calls Array(UInt64) COMMENT 'As in minutes_raw',
    flagged Array(UInt64) COMMENT 'As in minutes_raw',
    masked Array(UInt64) COMMENT 'As in minutes_raw',
    arguments_bytes Array(UInt64) COMMENT 'As in minutes_raw',
    result_bytes Array(UInt64) COMMENT 'As in minutes_raw',
    first_at Array(DateTime64(6, 'UTC')) COMMENT 'As in minutes_raw',
    last_at Array(DateTime64(6, 'UTC')) COMMENT 'As in minutes_raw',
    subjects Array(AggregateFunction(uniqCombined64, String)) COMMENT 'As in minutes_raw',
    sessions Array(AggregateFunction(uniqCombined64, String)) COMMENT 'As in minutes_raw',
    policy_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'As in minutes_raw',
    upstream_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'As in minutes_raw',
    total_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'As in minutes_raw'
)
AS WITH
    toStartOfDay(now('UTC')) - toIntervalDay(90) AS kept_from,
    (SELECT if(count() = 0, 120, argMax(value, set_at)) FROM tidegate.parameters WHERE name = 'rollup_grace_s') AS grace_s,
    (
        SELECT groupArray((tenant, minute))
        FROM (
            SELECT tenant, minute
            FROM (SELECT tenant, minute, max(marked_at) AS marked FROM tidegate.minutes_marks GROUP BY tenant, minute) AS mark
            LEFT JOIN (SELECT tenant, minute, max(rolled_at) AS rolled FROM tidegate.minutes_raw GROUP BY tenant, minute) AS counted USING (tenant, minute)
            WHERE rolled <= marked + toIntervalSecond(grace_s) AND marked + toIntervalSecond(grace_s) < now64(6, 'UTC') AND minute >= kept_from
            ORDER BY minute DESC
            LIMIT 1440
        )
    ) AS settled
SELECT
    settled_one.1 AS tenant, settled_one.2 AS minute, now64(6, 'UTC') AS rolled_at, grouped.region AS region,
    grouped.agent AS agent, grouped.method AS method, grouped.server AS server, grouped.target AS target,
    grouped.decision AS decision, grouped.status AS status, grouped.stage AS stage, grouped.reason AS reason,
    grouped.bundle AS bundle, grouped.rules AS rules, grouped.calls AS calls, grouped.flagged AS flagged,
    grouped.masked AS masked, grouped.arguments_bytes AS arguments_bytes, grouped.result_bytes AS result_bytes,
    grouped.first_at AS first_at, grouped.last_at AS last_at, grouped.subjects AS subjects,
    grouped.sessions AS sessions, grouped.policy_time AS policy_time, grouped.upstream_time AS upstream_time,
    grouped.total_time AS total_time
FROM (SELECT arrayJoin(settled) AS settled_one) AS due
LEFT JOIN (
    SELECT
        one.tenant AS tenant, one.minute AS minute, groupArray(one.region) AS region, groupArray(one.agent) AS agent,
        groupArray(one.method) AS method, groupArray(one.server) AS server, groupArray(one.target) AS target,
        groupArray(one.decision) AS decision, groupArray(one.status) AS status, groupArray(one.stage) AS stage,
        groupArray(one.reason) AS reason, groupArray(one.bundle) AS bundle, groupArray(one.rules) AS rules,
        groupArray(one.calls) AS calls, groupArray(one.flagged) AS flagged, groupArray(one.masked) AS masked,
        groupArray(one.arguments_bytes) AS arguments_bytes, groupArray(one.result_bytes) AS result_bytes,
        groupArray(one.first_at) AS first_at, groupArray(one.last_at) AS last_at,
        groupArray(one.subjects) AS subjects, groupArray(one.sessions) AS sessions,
        groupArray(one.policy_time) AS policy_time, groupArray(one.upstream_time) AS upstream_time,
        groupArray(one.total_time) AS total_time
    FROM tidegate.minutes_live AS one
    WHERE (one.tenant, one.minute) IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(settled) AS pair))
    GROUP BY tenant, minute
) AS grouped ON grouped.tenant = due.settled_one.1 AND grouped.minute = due.settled_one.2;

CREATE TABLE IF NOT EXISTS tidegate.hours_raw
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    hour DateTime('UTC') COMMENT 'Begin of the hour in which they were requested' CODEC(Delta, ZSTD(1)),
    rolled_at DateTime64(6, 'UTC') COMMENT 'When they were counted; the last count of a hour stays',
    region Array(String) COMMENT 'Region of the edge' CODEC(ZSTD(1)),
    agent Array(String) COMMENT 'Agent, from the token' CODEC(ZSTD(1)),
    method Array(String) COMMENT 'MCP method, e.g. tools/call' CODEC(ZSTD(1)),
    server Array(String) COMMENT 'Upstream server' CODEC(ZSTD(1)),
    target Array(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name' CODEC(ZSTD(1)),
    decision Array(String) COMMENT 'allow, deny, ask or limited' CODEC(ZSTD(1)),
    status Array(String) COMMENT 'As in calls; never pending' CODEC(ZSTD(1)),
    stage Array(String) COMMENT 'Stage that decided, as in calls' CODEC(ZSTD(1)),
    reason Array(String) COMMENT 'Reason code, kebab case' CODEC(ZSTD(1)),
    bundle Array(String) COMMENT 'Digest of the policy bundle that decided' CODEC(ZSTD(1)),
    rules Array(Array(String)) COMMENT 'Ids of the determining rules' CODEC(ZSTD(1)),
    calls Array(UInt64) COMMENT 'Calls with a last word: completed, refused or abandoned' CODEC(ZSTD(1)),
    flagged Array(UInt64) COMMENT 'Of these, calls in which inspection found something' CODEC(ZSTD(1)),
    masked Array(UInt64) COMMENT 'Values masked in answers' CODEC(ZSTD(1)),
    arguments_bytes Array(UInt64) COMMENT 'Bytes of arguments' CODEC(ZSTD(1)),
    result_bytes Array(UInt64) COMMENT 'Bytes of results as upstreams sent them' CODEC(ZSTD(1)),
    first_at Array(DateTime64(6, 'UTC')) COMMENT 'Request of the first of these calls' CODEC(ZSTD(1)),
    last_at Array(DateTime64(6, 'UTC')) COMMENT 'Request of the last of these calls' CODEC(ZSTD(1)),
    subjects Array(AggregateFunction(uniqCombined64, String)) COMMENT 'Distinct subjects; read with uniqCombined64Merge' CODEC(ZSTD(1)),
    sessions Array(AggregateFunction(uniqCombined64, String)) COMMENT 'Distinct sessions; read with uniqCombined64Merge' CODEC(ZSTD(1)),
    policy_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'Time spent deciding, of completed calls: 36 * log2(microseconds + 1); read as total_time' CODEC(ZSTD(1)),
    upstream_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'Time spent upstream, of calls that were forwarded and completed: 36 * log2(microseconds + 1); read as total_time' CODEC(ZSTD(1)),
    total_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'Time from accept to answer, of completed calls: 36 * log2(microseconds + 1), within one per cent; exp2(q / 36) - 1 of quantilesTimingMerge(0.5, 0.95, 0.99) is microseconds' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(rolled_at)
PARTITION BY toYYYYMM(hour)
ORDER BY (tenant, hour)
SETTINGS index_granularity = 64
COMMENT 'Calls counted by hour: a row holds a whole hour, an element of its arrays one combination; query calls_by_hour';

CREATE TABLE IF NOT EXISTS tidegate.hours_marks
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    hour DateTime('UTC') COMMENT 'Begin of the hour in which they were requested' CODEC(Delta, ZSTD(1)),
    marked_at DateTime64(6, 'UTC') COMMENT 'When a row of such a call was last inserted' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(marked_at)
PARTITION BY toYYYYMM(hour)
ORDER BY (tenant, hour)
COMMENT 'Which hours have to be counted again';

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.hours_marks_feed TO tidegate.hours_marks
(
    tenant String COMMENT 'As in hours_marks',
    hour DateTime('UTC') COMMENT 'As in hours_marks',
    marked_at DateTime64(6, 'UTC') COMMENT 'As in hours_marks'
)
AS SELECT tenant, toStartOfHour(requested_at) AS hour, now64(6, 'UTC') AS marked_at
FROM tidegate.calls_raw
GROUP BY tenant, hour;

INSERT INTO tidegate.hours_marks SELECT tenant, toStartOfHour(requested_at) AS hour, now64(6, 'UTC') AS marked_at
FROM tidegate.calls_raw
GROUP BY tenant, hour;

CREATE VIEW IF NOT EXISTS tidegate.hours_live
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    hour DateTime('UTC') COMMENT 'Begin of the hour in which they were requested',
    region LowCardinality(String) COMMENT 'Region of the edge',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited',
    status LowCardinality(String) COMMENT 'As in calls; never pending',
    stage LowCardinality(String) COMMENT 'Stage that decided, as in calls',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle that decided',
    rules Array(String) COMMENT 'Ids of the determining rules',
    calls UInt64 COMMENT 'Calls with a last word: completed, refused or abandoned',
    flagged UInt64 COMMENT 'Of these, calls in which inspection found something',
    masked UInt64 COMMENT 'Values masked in answers',
    arguments_bytes UInt64 COMMENT 'Bytes of arguments',
    result_bytes UInt64 COMMENT 'Bytes of results as upstreams sent them',
    first_at DateTime64(6, 'UTC') COMMENT 'Request of the first of these calls',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last of these calls',
    subjects AggregateFunction(uniqCombined64, String) COMMENT 'Distinct subjects; read with uniqCombined64Merge',
    sessions AggregateFunction(uniqCombined64, String) COMMENT 'Distinct sessions; read with uniqCombined64Merge',
    policy_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent deciding, of completed calls: 36 * log2(microseconds + 1); read as total_time',
    upstream_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent upstream, of calls that were forwarded and completed: 36 * log2(microseconds + 1); read as total_time',
    total_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time from accept to answer, of completed calls: 36 * log2(microseconds + 1), within one per cent; exp2(q / 36) - 1 of quantilesTimingMerge(0.5, 0.95, 0.99) is microseconds'
)
AS SELECT
    one.tenant AS tenant, toStartOfHour(one.requested_at) AS hour, one.region AS region, one.agent AS agent,
    one.method AS method, one.server AS server, one.target AS target, one.decision AS decision, one.status AS status,
    one.stage AS stage, one.reason AS reason, one.bundle AS bundle, one.rules AS rules, count() AS calls,
    countIf(notEmpty(one.found)) AS flagged, sum(one.masked) AS masked, sum(one.arguments_bytes) AS arguments_bytes,
    sum(one.result_bytes) AS result_bytes, min(one.requested_at) AS first_at, max(one.requested_at) AS last_at,
    uniqCombined64State(one.subject_id) AS subjects, uniqCombined64State(one.session_id) AS sessions,
    quantilesTimingStateIf(0.5, 0.95, 0.99)(toUInt32(round(log2(one.policy_us + 1) * 36)), version = 3) AS policy_time,
    quantilesTimingStateIf(0.5, 0.95, 0.99)(toUInt32(round(log2(one.upstream_us + 1) * 36)), one.upstream_us > 0) AS upstream_time,
    quantilesTimingStateIf(0.5, 0.95, 0.99)(toUInt32(round(log2(one.total_us + 1) * 36)), version = 3) AS total_time
FROM (
    SELECT
        tenant, requested_at, subject_id, session_id, region, agent, method, server, target, decision,
        multiIf(version = 3, outcome, decision = 'deny', 'denied', decision = 'ask', 'asked', decision = 'limited', 'limited', 'unknown') AS status,
        if(version = 3, completed_stage, requested_stage) AS stage,
        if(version = 3, completed_reason, requested_reason) AS reason,
        bundle,
        if(version = 3, completed_rules, requested_rules) AS rules,
        arrayConcat(arguments_findings, result_findings) AS found,
        masked, arguments_bytes, result_bytes, policy_us, upstream_us, total_us, version
    FROM tidegate.calls_raw FINAL
    WHERE version >= 2 OR decision != 'allow'
) AS one
GROUP BY
    tenant, hour, region, agent, method, server, target, decision, status, stage, reason, bundle, rules
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE VIEW IF NOT EXISTS tidegate.calls_by_hour
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    hour DateTime('UTC') COMMENT 'Begin of the hour in which they were requested',
    region LowCardinality(String) COMMENT 'Region of the edge',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited',
    status LowCardinality(String) COMMENT 'As in calls; never pending',
    stage LowCardinality(String) COMMENT 'Stage that decided, as in calls',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle that decided',
    rules Array(String) COMMENT 'Ids of the determining rules',
    calls UInt64 COMMENT 'Calls with a last word: completed, refused or abandoned',
    flagged UInt64 COMMENT 'Of these, calls in which inspection found something',
    masked UInt64 COMMENT 'Values masked in answers',
    arguments_bytes UInt64 COMMENT 'Bytes of arguments',
    result_bytes UInt64 COMMENT 'Bytes of results as upstreams sent them',
    first_at DateTime64(6, 'UTC') COMMENT 'Request of the first of these calls',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last of these calls',
    subjects AggregateFunction(uniqCombined64, String) COMMENT 'Distinct subjects; read with uniqCombined64Merge',
    sessions AggregateFunction(uniqCombined64, String) COMMENT 'Distinct sessions; read with uniqCombined64Merge',
    policy_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent deciding, of completed calls: 36 * log2(microseconds + 1); read as total_time',
    upstream_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time spent upstream, of calls that were forwarded and completed: 36 * log2(microseconds + 1); read as total_time',
    total_time AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32) COMMENT 'Time from accept to answer, of completed calls: 36 * log2(microseconds + 1), within one per cent; exp2(q / 36) - 1 of quantilesTimingMerge(0.5, 0.95, 0.99) is microseconds'
)
AS WITH
    toStartOfDay(now('UTC')) - toIntervalDay(89) AS minutes_from,
    (SELECT if(count() = 0, 120, argMax(value, set_at)) FROM tidegate.parameters WHERE name = 'rollup_grace_s') AS grace_s,
    (
        SELECT groupArray((tenant, hour))
        FROM (SELECT tenant, hour, max(marked_at) AS marked FROM tidegate.hours_marks GROUP BY tenant, hour) AS mark
        LEFT JOIN (SELECT tenant, hour, max(rolled_at) AS rolled FROM tidegate.hours_raw GROUP BY tenant, hour) AS counted USING (tenant, hour)
        WHERE rolled <= marked + toIntervalSecond(grace_s)
    ) AS open
SELECT
    tenant, hour, region_ AS region, agent_ AS agent, method_ AS method, server_ AS server, target_ AS target,
    decision_ AS decision, status_ AS status, stage_ AS stage, reason_ AS reason, bundle_ AS bundle, rules_ AS rules,
    calls_ AS calls, flagged_ AS flagged, masked_ AS masked, arguments_bytes_ AS arguments_bytes,
    result_bytes_ AS result_bytes, first_at_ AS first_at, last_at_ AS last_at, subjects_ AS subjects,
    sessions_ AS sessions, policy_time_ AS policy_time, upstream_time_ AS upstream_time, total_time_ AS total_time
FROM tidegate.hours_raw AS raw FINAL
ARRAY JOIN
    raw.region AS region_, raw.agent AS agent_, raw.method AS method_, raw.server AS server_, raw.target AS target_,
    raw.decision AS decision_, raw.status AS status_, raw.stage AS stage_, raw.reason AS reason_,
    raw.bundle AS bundle_, raw.rules AS rules_, raw.calls AS calls_, raw.flagged AS flagged_, raw.masked AS masked_,
    raw.arguments_bytes AS arguments_bytes_, raw.result_bytes AS result_bytes_, raw.first_at AS first_at_,
    raw.last_at AS last_at_, raw.subjects AS subjects_, raw.sessions AS sessions_, raw.policy_time AS policy_time_,
    raw.upstream_time AS upstream_time_, raw.total_time AS total_time_
WHERE (tenant, hour) NOT IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(open) AS pair))
UNION ALL
SELECT
    tenant, toStartOfHour(one.minute) AS hour, one.region AS region, one.agent AS agent, one.method AS method,
    one.server AS server, one.target AS target, one.decision AS decision, one.status AS status, one.stage AS stage,
    one.reason AS reason, one.bundle AS bundle, one.rules AS rules, sum(one.calls) AS calls,
    sum(one.flagged) AS flagged, sum(one.masked) AS masked, sum(one.arguments_bytes) AS arguments_bytes,
    sum(one.result_bytes) AS result_bytes, min(one.first_at) AS first_at, max(one.last_at) AS last_at,
    uniqCombined64MergeState(one.subjects) AS subjects, uniqCombined64MergeState(one.sessions) AS sessions,
    quantilesTimingMergeState(0.5, 0.95, 0.99)(one.policy_time) AS policy_time,
    quantilesTimingMergeState(0.5, 0.95, 0.99)(one.upstream_time) AS upstream_time,
    quantilesTimingMergeState(0.5, 0.95, 0.99)(one.total_time) AS total_time
FROM tidegate.calls_by_minute AS one
WHERE (tenant, hour) IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(open) AS pair)) AND hour >= minutes_from
GROUP BY
    tenant, hour, region, agent, method, server, target, decision, status, stage, reason, bundle, rules
UNION ALL
SELECT
    tenant, hour, region, agent, method, server, target, decision, status, stage, reason, bundle, rules, calls,
    flagged, masked, arguments_bytes, result_bytes, first_at, last_at, subjects, sessions, policy_time,
    upstream_time, total_time
FROM tidegate.hours_live
WHERE (tenant, hour) IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(open) AS pair)) AND hour < minutes_from;

CREATE MATERIALIZED VIEW IF NOT EXISTS tidegate.hours_refresh REFRESH EVERY 5 MINUTE APPEND TO tidegate.hours_raw
(
    tenant String COMMENT 'As in hours_raw',
    hour DateTime('UTC') COMMENT 'As in hours_raw',
    rolled_at DateTime64(6, 'UTC') COMMENT 'As in hours_raw',
    region Array(String) COMMENT 'As in hours_raw',
    agent Array(String) COMMENT 'As in hours_raw',
    method Array(String) COMMENT 'As in hours_raw',
    server Array(String) COMMENT 'As in hours_raw',
    target Array(String) COMMENT 'As in hours_raw',
    decision Array(String) COMMENT 'As in hours_raw',
    status Array(String) COMMENT 'As in hours_raw',
    stage Array(String) COMMENT 'As in hours_raw',
    reason Array(String) COMMENT 'As in hours_raw',
    bundle Array(String) COMMENT 'As in hours_raw',
    rules Array(Array(String)) COMMENT 'As in hours_raw',
    calls Array(UInt64) COMMENT 'As in hours_raw',
    flagged Array(UInt64) COMMENT 'As in hours_raw',
    masked Array(UInt64) COMMENT 'As in hours_raw',
    arguments_bytes Array(UInt64) COMMENT 'As in hours_raw',
    result_bytes Array(UInt64) COMMENT 'As in hours_raw',
    first_at Array(DateTime64(6, 'UTC')) COMMENT 'As in hours_raw',
    last_at Array(DateTime64(6, 'UTC')) COMMENT 'As in hours_raw',
    subjects Array(AggregateFunction(uniqCombined64, String)) COMMENT 'As in hours_raw',
    sessions Array(AggregateFunction(uniqCombined64, String)) COMMENT 'As in hours_raw',
    policy_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'As in hours_raw',
    upstream_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'As in hours_raw',
    total_time Array(AggregateFunction(quantilesTiming(0.5, 0.95, 0.99), UInt32)) COMMENT 'As in hours_raw'
)
AS WITH
    toStartOfDay(now('UTC')) - toIntervalDay(89) AS minutes_from,
    (SELECT if(count() = 0, 120, argMax(value, set_at)) FROM tidegate.parameters WHERE name = 'rollup_grace_s') AS grace_s,
    (
        SELECT groupArray((tenant, hour))
        FROM (
            SELECT tenant, hour
            FROM (SELECT tenant, hour, max(marked_at) AS marked FROM tidegate.hours_marks GROUP BY tenant, hour) AS mark
            LEFT JOIN (SELECT tenant, hour, max(rolled_at) AS rolled FROM tidegate.hours_raw GROUP BY tenant, hour) AS counted USING (tenant, hour)
            WHERE rolled <= marked + toIntervalSecond(grace_s) AND marked + toIntervalSecond(grace_s) < now64(6, 'UTC') AND hour < toStartOfHour(now('UTC'))
            ORDER BY hour DESC
            LIMIT 240
        )
    ) AS settled
SELECT
    settled_one.1 AS tenant, settled_one.2 AS hour, now64(6, 'UTC') AS rolled_at, grouped.region AS region,
    grouped.agent AS agent, grouped.method AS method, grouped.server AS server, grouped.target AS target,
    grouped.decision AS decision, grouped.status AS status, grouped.stage AS stage, grouped.reason AS reason,
    grouped.bundle AS bundle, grouped.rules AS rules, grouped.calls AS calls, grouped.flagged AS flagged,
    grouped.masked AS masked, grouped.arguments_bytes AS arguments_bytes, grouped.result_bytes AS result_bytes,
    grouped.first_at AS first_at, grouped.last_at AS last_at, grouped.subjects AS subjects,
    grouped.sessions AS sessions, grouped.policy_time AS policy_time, grouped.upstream_time AS upstream_time,
    grouped.total_time AS total_time
FROM (SELECT arrayJoin(settled) AS settled_one) AS due
LEFT JOIN (
    SELECT
        one.tenant AS tenant, one.hour AS hour, groupArray(one.region) AS region, groupArray(one.agent) AS agent,
        groupArray(one.method) AS method, groupArray(one.server) AS server, groupArray(one.target) AS target,
        groupArray(one.decision) AS decision, groupArray(one.status) AS status, groupArray(one.stage) AS stage,
        groupArray(one.reason) AS reason, groupArray(one.bundle) AS bundle, groupArray(one.rules) AS rules,
        groupArray(one.calls) AS calls, groupArray(one.flagged) AS flagged, groupArray(one.masked) AS masked,
        groupArray(one.arguments_bytes) AS arguments_bytes, groupArray(one.result_bytes) AS result_bytes,
        groupArray(one.first_at) AS first_at, groupArray(one.last_at) AS last_at,
        groupArray(one.subjects) AS subjects, groupArray(one.sessions) AS sessions,
        groupArray(one.policy_time) AS policy_time, groupArray(one.upstream_time) AS upstream_time,
        groupArray(one.total_time) AS total_time
    FROM tidegate.calls_by_hour AS one
    WHERE (one.tenant, one.hour) IN (SELECT pair.1, pair.2 FROM (SELECT arrayJoin(settled) AS pair))
    GROUP BY tenant, hour
) AS grouped ON grouped.tenant = due.settled_one.1 AND grouped.hour = due.settled_one.2;

ALTER TABLE tidegate.parameters COMMENT COLUMN name 'unknown_after_s: seconds after which a call without completion shows as unknown; rollup_grace_s: seconds without inserts after which a minute or hour is counted, longer than any insert lasts (120 where not set)';
