-- What policy life adds to a call: the role of the release that decided, approvals, what shadows would have said, limits, and the facts
-- that rules looked at. Approvals and definitions that were held are read from the events themselves.

ALTER TABLE tidegate.calls_raw
    ADD COLUMN IF NOT EXISTS role SimpleAggregateFunction(max, LowCardinality(String)) COMMENT 'Role of the release that decided, where it is another than ruling' AFTER release,
    ADD COLUMN IF NOT EXISTS approval_id SimpleAggregateFunction(max, String) COMMENT 'The approval that was waited for or used' CODEC(ZSTD(1)) AFTER role,
    ADD COLUMN IF NOT EXISTS shadows SimpleAggregateFunction(max, Array(Tuple(bundle String, release UInt64, decision String, reason String, rules Array(String)))) COMMENT 'What rules that only watch would have said, where that differs' CODEC(ZSTD(1)) AFTER approval_id,
    ADD COLUMN IF NOT EXISTS retry_after_ms SimpleAggregateFunction(max, UInt64) COMMENT 'Of a limited call: when there was room again' CODEC(ZSTD(1)) AFTER shadows,
    ADD COLUMN IF NOT EXISTS principal_kind SimpleAggregateFunction(max, LowCardinality(String)) COMMENT 'What the principal is, where that is another than user' AFTER retry_after_ms,
    ADD COLUMN IF NOT EXISTS taint SimpleAggregateFunction(max, Array(String)) COMMENT 'Labels of what the session had read, where rules looked at it' CODEC(ZSTD(1)) AFTER principal_kind,
    ADD COLUMN IF NOT EXISTS facts SimpleAggregateFunction(max, Array(String)) COMMENT 'Circumstances that rules looked at: time, network, taint, protocol' CODEC(ZSTD(1)) AFTER taint,
    ADD COLUMN IF NOT EXISTS address SimpleAggregateFunction(max, String) COMMENT 'Personal: network address of the caller, where a rule looked at it' CODEC(ZSTD(1)) AFTER claimed_client,
    ADD COLUMN IF NOT EXISTS records SimpleAggregateFunction(max, UInt64) COMMENT 'Records in the result, where a budget counts them' CODEC(ZSTD(1)) AFTER masked,
    ADD COLUMN IF NOT EXISTS cost_micros SimpleAggregateFunction(max, UInt64) COMMENT 'Price of the call, millionths' CODEC(ZSTD(1)) AFTER records;

-- SQL_tenant is a setting of accounts that see one tenant alone (migrations/server); elsewhere there is no such setting.
CREATE OR REPLACE VIEW tidegate.calls
(
    call_id String COMMENT 'The call; its decision has the same id',
    decision_id String COMMENT 'The decision''s id: the call''s',
    root_call_id String COMMENT 'The logical call over retries and input rounds',
    tenant LowCardinality(String) COMMENT 'Whose call this is',
    region LowCardinality(String) COMMENT 'Region of the edge',
    requested_at DateTime64(6, 'UTC') COMMENT 'When the edge accepted the call',
    completed_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When the call ended; NULL while it has not',
    status LowCardinality(String) COMMENT 'ok, tool-error, rpc-error, upstream-failed, timeout, cancelled, blocked; denied, asked, limited: not forwarded; pending; unknown: forwarded perhaps, and no completion was recorded in time',
    subject_id String COMMENT 'Pseudonym of the subject',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    session_id String COMMENT 'Governance session',
    protocol_session_id String COMMENT 'The protocol''s own session id, where it has one',
    protocol LowCardinality(String) COMMENT 'MCP revision the client spoke',
    edge LowCardinality(String) COMMENT 'The edge that served the call',
    method LowCardinality(String) COMMENT 'MCP method, e.g. tools/call',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    labels Array(String) COMMENT 'Labels of server and tool',
    decision LowCardinality(String) COMMENT 'allow, deny, ask or limited',
    stage LowCardinality(String) COMMENT 'Stage that decided: policy, limit, quarantine, inspection, admission or log',
    reason LowCardinality(String) COMMENT 'Reason code, kebab case',
    message String COMMENT 'Sentence that the model was given',
    rules Array(String) COMMENT 'Ids of the determining rules',
    mode LowCardinality(String) COMMENT 'Durability under which the request was recorded',
    bundle LowCardinality(String) COMMENT 'Digest of the policy bundle that decided',
    release UInt64 COMMENT 'Number of the release that pointed at the bundle',
    role LowCardinality(String) COMMENT 'Role of that release in its ring: ruling or canary',
    approval_id String COMMENT 'The approval that the call waits for (decision ask), or that let it through (allow)',
    shadows Array(Tuple(bundle String, release UInt64, decision String, reason String, rules Array(String))) COMMENT 'What rules that only watch would have said, where that differs; shadows.decision is an array',
    retry_after_ms UInt64 COMMENT 'Of a limited call: when there was room again; 0 where that could not be told',
    catalog LowCardinality(String) COMMENT 'Digest of the server''s definitions at the decision',
    groups Array(String) COMMENT 'Groups of the subject at the decision',
    principal_kind LowCardinality(String) COMMENT 'user, or service: an account without a person',
    taint Array(String) COMMENT 'Labels of what the session had read, where rules looked at it',
    facts Array(String) COMMENT 'Circumstances that rules looked at: now, time, network, taint, protocol',
    control_epoch UInt64 COMMENT 'Epoch of quarantines and revocations at the decision',
    error_code Nullable(Int64) COMMENT 'JSON-RPC error code where outcome is rpc-error',
    policy_us UInt64 COMMENT 'Time spent deciding, microseconds',
    upstream_us UInt64 COMMENT 'Time spent upstream, microseconds',
    total_us UInt64 COMMENT 'Time from accept to answer, microseconds',
    arguments_bytes UInt64 COMMENT 'Size of the arguments as forwarded',
    arguments_digest String COMMENT 'SHA-256, hex, of the arguments as forwarded',
    arguments_capture LowCardinality(String) COMMENT 'How arguments were captured: full, masked, digest or none',
    arguments_kept UInt8 COMMENT '1 where the arguments decided on are kept whole and unmasked',
    arguments_fingerprints Array(String) COMMENT 'Keyed content fingerprints of the arguments',
    result_bytes UInt64 COMMENT 'Size of the result as the upstream sent it',
    result_digest String COMMENT 'SHA-256, hex, of the result as the upstream sent it',
    result_capture LowCardinality(String) COMMENT 'How the result was captured: full, masked, digest or none',
    result_fingerprints Array(String) COMMENT 'Keyed content fingerprints of the result',
    findings Array(Tuple(rule String, severity String, action String, direction String, count UInt64)) COMMENT 'What inspection found, in arguments and in the result; findings.rule is an array of the rules',
    masked UInt64 COMMENT 'Values masked in the answer',
    records UInt64 COMMENT 'Records in the result, where a budget counts them',
    cost Decimal(18, 6) COMMENT 'Price of the call, where a budget has one for it',
    issuer String COMMENT 'Personal: token issuer',
    subject String COMMENT 'Personal: the token''s sub',
    login String COMMENT 'Personal: login or e-mail',
    claimed_client String COMMENT 'Personal: the client''s own name for itself; a hint, never an identity',
    address String COMMENT 'Personal: network address of the caller, where a rule looked at it',
    arguments String COMMENT 'Personal: arguments as captured, JSON',
    result String COMMENT 'Personal: result as captured, JSON',
    inputs String COMMENT 'Personal: what the client answered to a server''s questions, as captured, JSON',
    is_erased UInt8 COMMENT '1 where a key of this call was destroyed at an erasure: its personal columns are empty, or those of the part that the key sealed',
    requested_event String COMMENT 'Event id of the request; empty while it has not arrived',
    abandoned_event String COMMENT 'Event id of the abandonment, if any',
    completed_event String COMMENT 'Event id of the completion, if any'
)
AS WITH
    -- Without branches (if, multiIf): a branch's arguments are worked out anew for each column that has it. So a key that is not
    -- here is padded to one that opens nothing, no box to one of the least size, and the greater of two texts is the one there is.
    -- In what was sealed texts come first, then arguments, result and inputs, each as it was captured. They are cut out of the
    -- bytes one after the other: what stands inside one is never taken for another, and no number is written anew.
    -- ClickHouse's simple JSON functions take the quote after an escaped backslash for an escaped quote. So such pairs are out of
    -- the way meanwhile, as two characters that JSON cannot hold: all lengths stay.
    -- What is used more than once is a lambda's parameter (arrayMap over one element): a name given by AS is written out in full
    -- wherever it stands, one inside the other, and planning such a query took 130 ms whatever it asked for.
    arrayMap(
        text -> arrayMap(
            cut -> (substring(text, 1, cut - 1), substring(text, cut)),
            [multiSearchFirstPosition(concat(text, '"inputs":'), ['"arguments":', '"result":', '"inputs":'])])[1],
        [replaceAll(ifNull(
        tryDecrypt('aes-256-gcm', substring(if(request_box = '', repeat('-', 28), request_box), 13),
            rightPad(joinGet('tidegate.subject_keys', 'key', request_kid), 32, '-'),
            substring(if(request_box = '', repeat('-', 28), request_box), 1, 12), request_kid), ''), '\\\\', '\x01\x01')])[1] AS request,
    arrayMap(
        text -> arrayMap(
            cut -> (substring(text, 1, cut - 1), substring(text, cut)),
            [multiSearchFirstPosition(concat(text, '"inputs":'), ['"arguments":', '"result":', '"inputs":'])])[1],
        [replaceAll(ifNull(
        tryDecrypt('aes-256-gcm', substring(if(completion_box = '', repeat('-', 28), completion_box), 13),
            rightPad(joinGet('tidegate.subject_keys', 'key', completion_kid), 32, '-'),
            substring(if(completion_box = '', repeat('-', 28), completion_box), 1, 12), completion_kid), ''), '\\\\', '\x01\x01')])[1] AS completion,
    arrayMap(
        parts -> simpleJSONExtractRaw(substring(parts, 1, startsWith(parts, '"arguments":') * length(parts)), 'arguments'),
        [request.2])[1] AS request_arguments,
    arrayMap(
        (parts, before) -> arrayMap(
            rest -> simpleJSONExtractRaw(substring(rest, 1, startsWith(rest, '"inputs":') * length(rest)), 'inputs'),
            [substring(parts, 1 + notEmpty(before) * (length(before) + 13))])[1],
        [request.2], [request_arguments])[1] AS request_inputs,
    arrayMap(
        parts -> simpleJSONExtractRaw(substring(parts, 1, startsWith(parts, '"result":') * length(parts)), 'result'),
        [completion.2])[1] AS completion_result
SELECT
    call_id, call_id AS decision_id, root_call_id, tenant, region, requested_at,
    if(version = 3, completed_at, NULL) AS completed_at,
    multiIf(
        version = 3, outcome,
        decision = 'deny', 'denied',
        decision = 'ask', 'asked',
        decision = 'limited', 'limited',
        version = 2, 'unknown',
        requested_at < now64(6, 'UTC') - toIntervalSecond(
            (SELECT if(count() = 0, 600, argMax(value, set_at)) FROM tidegate.parameters WHERE name = 'unknown_after_s')), 'unknown',
        'pending') AS status,
    subject_id, agent, session_id, protocol_session_id, protocol, edge, method, server, target, labels, decision,
    if(version = 3, completed_stage, requested_stage) AS stage,
    if(version = 3, completed_reason, requested_reason) AS reason,
    if(version = 3, completed_message, requested_message) AS message,
    if(version = 3, completed_rules, requested_rules) AS rules,
    if(requested_mode != '', requested_mode, completed_mode) AS mode,
    bundle, release, if(raw.role = '', 'ruling', raw.role) AS role, approval_id, shadows, retry_after_ms, catalog, groups,
    if(raw.principal_kind = '', 'user', raw.principal_kind) AS principal_kind, taint, facts, control_epoch, error_code, policy_us, upstream_us, total_us,
    arguments_bytes, arguments_digest, arguments_capture, arguments_kept, arguments_fingerprints,
    result_bytes, result_digest, result_capture, result_fingerprints,
    arrayConcat(arguments_findings, result_findings) AS findings, masked,
    records, toDecimal64(cost_micros, 6) / 1000000 AS cost,
    greatest(raw.issuer, replaceAll(simpleJSONExtractString(request.1, 'issuer'), '\x01\x01', '\\')) AS issuer,
    greatest(raw.subject, replaceAll(simpleJSONExtractString(request.1, 'subject'), '\x01\x01', '\\')) AS subject,
    greatest(raw.login, replaceAll(simpleJSONExtractString(request.1, 'login'), '\x01\x01', '\\'), replaceAll(simpleJSONExtractString(completion.1, 'login'), '\x01\x01', '\\')) AS login,
    greatest(raw.claimed_client, replaceAll(simpleJSONExtractString(request.1, 'claimed_client'), '\x01\x01', '\\')) AS claimed_client,
    greatest(raw.address, replaceAll(simpleJSONExtractString(request.1, 'address'), '\x01\x01', '\\')) AS address,
    greatest(raw.arguments, replaceAll(arrayMap(one -> substring(one, 1, (one != 'null') * length(one)), [request_arguments])[1], '\x01\x01', '\\\\')) AS arguments,
    greatest(raw.result, replaceAll(arrayMap(one -> substring(one, 1, (one != 'null') * length(one)), [completion_result])[1], '\x01\x01', '\\\\')) AS result,
    greatest(raw.inputs, replaceAll(arrayMap(one -> substring(one, 1, (one != 'null') * length(one)), [request_inputs])[1], '\x01\x01', '\\\\')) AS inputs,
    (tenant, subject_id) IN (SELECT tenant, subject_id FROM tidegate.erasures)
        AND ((request_kid != '' AND joinGet('tidegate.subject_keys', 'key', request_kid) = '')
            OR (completion_kid != '' AND joinGet('tidegate.subject_keys', 'key', completion_kid) = '')) AS is_erased,
    requested_event, abandoned_event, completed_event
FROM tidegate.calls_raw AS raw FINAL
WHERE getSettingOrDefault('SQL_tenant', '') = '' OR tenant = getSettingOrDefault('SQL_tenant', '')
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- One row per call that rules which only watch would have decided otherwise, and per set of such rules.
CREATE VIEW IF NOT EXISTS tidegate.shadow_differences
(
    requested_at DateTime64(6, 'UTC') COMMENT 'When the edge accepted the call',
    call_id String COMMENT 'The call; `tidegate why` tells its story',
    tenant LowCardinality(String) COMMENT 'Whose calls these are',
    subject_id String COMMENT 'Pseudonym of the subject',
    groups Array(String) COMMENT 'Groups of the subject at the decision',
    agent LowCardinality(String) COMMENT 'Agent, from the token',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    decision LowCardinality(String) COMMENT 'What was decided',
    rules Array(String) COMMENT 'Ids of the rules that determined it',
    bundle LowCardinality(String) COMMENT 'Digest of the bundle that decided',
    shadow_decision String COMMENT 'What the watching rules would have decided',
    shadow_reason String COMMENT 'Reason code of that, kebab case',
    shadow_rules Array(String) COMMENT 'Ids of the rules that would have determined it',
    shadow_bundle String COMMENT 'Digest of their bundle; the same as bundle: its own rules in shadow mode',
    shadow_release UInt64 COMMENT 'Number of the release that they stand in'
)
AS SELECT
    requested_at, call_id, tenant, subject_id, groups, agent, server, target, decision, rules, bundle,
    shadow.decision AS shadow_decision, shadow.reason AS shadow_reason, shadow.rules AS shadow_rules,
    shadow.bundle AS shadow_bundle, shadow.release AS shadow_release
FROM tidegate.calls
ARRAY JOIN shadows AS shadow;

-- One row per approval. Its events may come in any order, and more than once.
CREATE VIEW IF NOT EXISTS tidegate.approvals
(
    approval_id String COMMENT 'The approval; `tidegate approvals show` tells more',
    tenant LowCardinality(String) COMMENT 'Whose it is',
    state LowCardinality(String) COMMENT 'pending, granted, denied, consumed or expired',
    asked_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When the call was refused for want of it',
    decided_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When a person decided',
    consumed_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When the call that it was for went on',
    subject_id String COMMENT 'Pseudonym of who asked',
    agent LowCardinality(String) COMMENT 'Through which agent, from the token',
    server LowCardinality(String) COMMENT 'Upstream server',
    target LowCardinality(String) COMMENT 'Tool (or resource, prompt) by the upstream''s own name',
    rules Array(String) COMMENT 'Ids of the asking rules',
    approver String COMMENT 'Who could decide: empty the requester, too; other: anybody else; else a group',
    actor String COMMENT 'Pseudonym of who decided',
    channel LowCardinality(String) COMMENT 'form, url or api',
    reason String COMMENT 'What who decided gave as reason',
    asked_call String COMMENT 'The call that asked',
    consumed_call String COMMENT 'The call that went on'
)
AS SELECT
    JSONExtractString(raw, 'approval_id') AS approval_id, events.tenant AS tenant,
    multiIf(max(type = 'approval.consumed.v1'), 'consumed', max(type = 'approval.expired.v1'), 'expired',
        max(type = 'approval.denied.v1'), 'denied', max(type = 'approval.granted.v1'), 'granted', 'pending') AS state,
    minOrNullIf(time, type = 'approval.requested.v1') AS asked_at,
    minOrNullIf(time, type IN ('approval.granted.v1', 'approval.denied.v1')) AS decided_at,
    minOrNullIf(time, type = 'approval.consumed.v1') AS consumed_at,
    maxIf(events.subject_id, type = 'approval.requested.v1') AS subject_id,
    maxIf(events.agent, type = 'approval.requested.v1') AS agent,
    maxIf(events.server, type = 'approval.requested.v1') AS server,
    maxIf(events.target, type = 'approval.requested.v1') AS target,
    maxIf(JSONExtract(raw, 'rules', 'Array(String)'), type = 'approval.requested.v1') AS rules,
    maxIf(JSONExtractString(raw, 'approver'), type = 'approval.requested.v1') AS approver,
    maxIf(JSONExtractString(raw, 'actor'), type IN ('approval.granted.v1', 'approval.denied.v1')) AS actor,
    maxIf(JSONExtractString(raw, 'channel'), type IN ('approval.granted.v1', 'approval.denied.v1')) AS channel,
    maxIf(JSONExtractString(raw, 'reason'), type IN ('approval.granted.v1', 'approval.denied.v1')) AS reason,
    maxIf(events.call_id, type = 'approval.requested.v1') AS asked_call,
    maxIf(events.call_id, type = 'approval.consumed.v1') AS consumed_call
FROM tidegate.events AS events
WHERE startsWith(type, 'approval.')
GROUP BY approval_id, tenant;
