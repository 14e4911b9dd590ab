-- Plain views by name, over `calls` and the counts by hour. They run with the rights of who asks, so row policies hold in them.

-- One row per call that was not let through: denied, asked back, limited, or blocked by inspection.
CREATE VIEW IF NOT EXISTS tidegate.denials
(
    requested_at DateTime64(6, 'UTC') COMMENT 'When the edge accepted the call',
    call_id String COMMENT 'The call; `tidegate why` tells its story',
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    region LowCardinality(String) COMMENT 'Region of the edge',
    login String COMMENT 'Personal: login or e-mail',
    subject_id String COMMENT 'Pseudonym of the subject',
    groups Array(String) COMMENT 'Groups of the subject at the decision',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    session_id String COMMENT 'Governance session',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    labels Array(String) COMMENT 'Labels of server and tool',
    decision LowCardinality(String) COMMENT 'deny, ask or limited; allow where the answer was blocked',
    status LowCardinality(String) COMMENT 'denied, asked, limited or blocked; another where an asked call went on',
    stage LowCardinality(String) COMMENT 'Stage that decided: policy, limit, quarantine, inspection, admission or log',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case',
    message String COMMENT 'Sentence that the model was given',
    rules Array(String) COMMENT 'Ids of the determining rules',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle that decided',
    release UInt64 COMMENT 'Number of the release that pointed at the bundle'
)
AS SELECT
    requested_at, call_id, tenant, region, login, subject_id, groups, agent, session_id, method, server, target,
    labels, decision, status, stage, reason, message, rules, bundle, release
FROM tidegate.calls
WHERE decision != 'allow' OR status = 'blocked';

-- One row per tool (resource, prompt) and day.
CREATE VIEW IF NOT EXISTS tidegate.tool_usage
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    day Date COMMENT 'Day of the requests, UTC',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    calls UInt64 COMMENT 'Calls with a last word',
    ok UInt64 COMMENT 'Of these, answered without an error',
    failed UInt64 COMMENT 'Of these, forwarded and failed: tool-error, rpc-error, upstream-failed, timeout, cancelled',
    refused UInt64 COMMENT 'Of these, denied, asked, limited or blocked',
    lost UInt64 COMMENT 'Of these, forwarded perhaps, with no completion: their edge died',
    flagged UInt64 COMMENT 'Calls in which inspection found something',
    agents UInt64 COMMENT 'Distinct agents',
    people UInt64 COMMENT 'Distinct subjects; exact while few, within a per cent or two when many',
    sessions UInt64 COMMENT 'Distinct sessions; as exact as people',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last call'
)
AS SELECT
    one.tenant AS tenant, toDate(one.hour) AS day, one.server AS server, one.target AS target, one.method AS method,
    sum(one.calls) AS calls, sumIf(one.calls, one.status = 'ok') AS ok,
    sumIf(one.calls, one.status IN ('tool-error', 'rpc-error', 'upstream-failed', 'timeout', 'cancelled')) AS failed,
    sumIf(one.calls, one.status IN ('denied', 'asked', 'limited', 'blocked')) AS refused,
    sumIf(one.calls, one.status = 'unknown') AS lost, sum(one.flagged) AS flagged, uniqExact(one.agent) AS agents,
    uniqCombined64Merge(one.subjects) AS people, uniqCombined64Merge(one.sessions) AS sessions,
    max(one.last_at) AS last_at
FROM tidegate.calls_by_hour AS one
GROUP BY tenant, day, server, target, method;

-- One row per agent, over all time.
CREATE VIEW IF NOT EXISTS tidegate.agents
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    first_at DateTime64(6, 'UTC') COMMENT 'Request of the first call',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last call',
    calls UInt64 COMMENT 'Calls with a last word',
    ok UInt64 COMMENT 'Of these, answered without an error',
    failed UInt64 COMMENT 'Of these, forwarded and failed: tool-error, rpc-error, upstream-failed, timeout, cancelled',
    refused UInt64 COMMENT 'Of these, denied, asked, limited or blocked',
    lost UInt64 COMMENT 'Of these, forwarded perhaps, with no completion: their edge died',
    flagged UInt64 COMMENT 'Calls in which inspection found something',
    servers UInt64 COMMENT 'Distinct servers',
    tools UInt64 COMMENT 'Distinct tools',
    people UInt64 COMMENT 'Distinct subjects; exact while few, within a per cent or two when many',
    sessions UInt64 COMMENT 'Distinct sessions; as exact as people'
)
AS SELECT
    one.tenant AS tenant, one.agent AS agent, min(one.first_at) AS first_at, max(one.last_at) AS last_at,
    sum(one.calls) AS calls, sumIf(one.calls, one.status = 'ok') AS ok,
    sumIf(one.calls, one.status IN ('tool-error', 'rpc-error', 'upstream-failed', 'timeout', 'cancelled')) AS failed,
    sumIf(one.calls, one.status IN ('denied', 'asked', 'limited', 'blocked')) AS refused,
    sumIf(one.calls, one.status = 'unknown') AS lost, sum(one.flagged) AS flagged, uniqExact(one.server) AS servers,
    uniqExactIf((one.server, one.target), one.method = 'tools/call') AS tools,
    uniqCombined64Merge(one.subjects) AS people, uniqCombined64Merge(one.sessions) AS sessions
FROM tidegate.calls_by_hour AS one
GROUP BY tenant, agent;

-- One row per upstream server, over all time.
CREATE VIEW IF NOT EXISTS tidegate.servers
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    server LowCardinality(String) COMMENT 'Upstream server',
    first_at DateTime64(6, 'UTC') COMMENT 'Request of the first call',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last call',
    calls UInt64 COMMENT 'Calls with a last word',
    ok UInt64 COMMENT 'Of these, answered without an error',
    failed UInt64 COMMENT 'Of these, forwarded and failed: tool-error, rpc-error, upstream-failed, timeout, cancelled',
    refused UInt64 COMMENT 'Of these, denied, asked, limited or blocked',
    lost UInt64 COMMENT 'Of these, forwarded perhaps, with no completion: their edge died',
    flagged UInt64 COMMENT 'Calls in which inspection found something',
    tools UInt64 COMMENT 'Distinct tools',
    agents UInt64 COMMENT 'Distinct agents',
    people UInt64 COMMENT 'Distinct subjects; exact while few, within a per cent or two when many',
    arguments_bytes UInt64 COMMENT 'Bytes of arguments',
    result_bytes UInt64 COMMENT 'Bytes of results as upstreams sent them',
    median_us Float64 COMMENT 'Median time from accept to answer, microseconds, within one per cent',
    p95_us Float64 COMMENT '95th percentile of it'
)
AS SELECT
    one.tenant AS tenant, one.server AS server, min(one.first_at) AS first_at, max(one.last_at) AS last_at,
    sum(one.calls) AS calls, sumIf(one.calls, one.status = 'ok') AS ok,
    sumIf(one.calls, one.status IN ('tool-error', 'rpc-error', 'upstream-failed', 'timeout', 'cancelled')) AS failed,
    sumIf(one.calls, one.status IN ('denied', 'asked', 'limited', 'blocked')) AS refused,
    sumIf(one.calls, one.status = 'unknown') AS lost, sum(one.flagged) AS flagged,
    uniqExactIf((one.server, one.target), one.method = 'tools/call') AS tools, uniqExact(one.agent) AS agents,
    uniqCombined64Merge(one.subjects) AS people, sum(one.arguments_bytes) AS arguments_bytes,
    sum(one.result_bytes) AS result_bytes,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.total_time)[1] / 36) - 1 AS median_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.total_time)[2] / 36) - 1 AS p95_us
FROM tidegate.calls_by_hour AS one
GROUP BY tenant, server;

-- One row per tool and hour, completed calls alone.
CREATE VIEW IF NOT EXISTS tidegate.latency
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    hour DateTime('UTC') COMMENT 'Begin of the hour of the requests',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    completed UInt64 COMMENT 'Calls that were completed',
    total_median_us Float64 COMMENT 'Median time from accept to answer, microseconds, within one per cent',
    total_p95_us Float64 COMMENT '95th percentile of the time from accept to answer, microseconds, within one per cent',
    total_p99_us Float64 COMMENT '99th percentile of the time from accept to answer, microseconds, within one per cent',
    upstream_median_us Float64 COMMENT 'Median time spent upstream, microseconds, within one per cent',
    upstream_p95_us Float64 COMMENT '95th percentile of the time spent upstream, microseconds, within one per cent',
    upstream_p99_us Float64 COMMENT '99th percentile of the time spent upstream, microseconds, within one per cent',
    policy_median_us Float64 COMMENT 'Median time spent deciding, microseconds, within one per cent',
    policy_p95_us Float64 COMMENT '95th percentile of the time spent deciding, microseconds, within one per cent',
    policy_p99_us Float64 COMMENT '99th percentile of the time spent deciding, microseconds, within one per cent'
)
AS SELECT
    one.tenant AS tenant, one.hour AS hour, one.server AS server, one.target AS target, one.method AS method,
    sumIf(one.calls, one.status NOT IN ('denied', 'asked', 'limited', 'unknown')) AS completed,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.total_time)[1] / 36) - 1 AS total_median_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.total_time)[2] / 36) - 1 AS total_p95_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.total_time)[3] / 36) - 1 AS total_p99_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.upstream_time)[1] / 36) - 1 AS upstream_median_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.upstream_time)[2] / 36) - 1 AS upstream_p95_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.upstream_time)[3] / 36) - 1 AS upstream_p99_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.policy_time)[1] / 36) - 1 AS policy_median_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.policy_time)[2] / 36) - 1 AS policy_p95_us,
    exp2(quantilesTimingMerge(0.5, 0.95, 0.99)(one.policy_time)[3] / 36) - 1 AS policy_p99_us
FROM tidegate.calls_by_hour AS one
WHERE one.status NOT IN ('denied', 'asked', 'limited', 'unknown')
GROUP BY tenant, hour, server, target, method;

-- One row per agent, tool and hour: what went in and came out.
CREATE VIEW IF NOT EXISTS tidegate.data_volume
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    hour DateTime('UTC') COMMENT 'Begin of the hour of the requests',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    calls UInt64 COMMENT 'Calls with a last word',
    arguments_bytes UInt64 COMMENT 'Bytes of arguments',
    result_bytes UInt64 COMMENT 'Bytes of results as upstreams sent them',
    masked UInt64 COMMENT 'Values masked in answers'
)
AS SELECT
    one.tenant AS tenant, one.hour AS hour, one.agent AS agent, one.server AS server, one.target AS target,
    sum(one.calls) AS calls, sum(one.arguments_bytes) AS arguments_bytes, sum(one.result_bytes) AS result_bytes,
    sum(one.masked) AS masked
FROM tidegate.calls_by_hour AS one
GROUP BY tenant, hour, agent, server, target;

-- One row per rule, decision, bundle and day; a call counts with each rule that determined it.
CREATE VIEW IF NOT EXISTS tidegate.policy_hits
(
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    day Date COMMENT 'Day of the requests, UTC',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle',
    rule String COMMENT 'Id of the determining rule',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited',
    calls UInt64 COMMENT 'Calls with a last word that it determined',
    agents UInt64 COMMENT 'Distinct agents',
    people UInt64 COMMENT 'Distinct subjects; exact while few, within a per cent or two when many',
    last_at DateTime64(6, 'UTC') COMMENT 'Request of the last call'
)
AS SELECT
    one.tenant AS tenant, toDate(one.hour) AS day, one.bundle AS bundle, rule AS rule, one.decision AS decision,
    sum(one.calls) AS calls, uniqExact(one.agent) AS agents, uniqCombined64Merge(one.subjects) AS people,
    max(one.last_at) AS last_at
FROM tidegate.calls_by_hour AS one
ARRAY JOIN one.rules AS rule
GROUP BY tenant, day, bundle, rule, decision;
