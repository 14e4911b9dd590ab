-- Personal parts, sealed per subject: what a call keeps is the sealed bytes and the name of their key. The keys are in a table of
-- their own, beside them; the view `calls` opens what has a key while it is read. Deleting a key is erasing: nothing else changes.

ALTER TABLE tidegate.calls_raw
    ADD COLUMN IF NOT EXISTS inputs SimpleAggregateFunction(max, String) COMMENT 'Personal: what the client answered to a server''s questions, as captured, JSON' CODEC(ZSTD(3)) AFTER result,
    ADD COLUMN IF NOT EXISTS request_kid SimpleAggregateFunction(max, LowCardinality(String)) COMMENT 'Key that opens request_box; empty where the request is plain' AFTER inputs,
    ADD COLUMN IF NOT EXISTS request_box SimpleAggregateFunction(max, String) COMMENT 'Personal part of the request, sealed: nonce, AES-256-GCM ciphertext, tag' CODEC(NONE) AFTER request_kid,
    ADD COLUMN IF NOT EXISTS completion_kid SimpleAggregateFunction(max, LowCardinality(String)) COMMENT 'Key that opens completion_box; empty where the completion is plain' AFTER request_box,
    ADD COLUMN IF NOT EXISTS completion_box SimpleAggregateFunction(max, String) COMMENT 'Personal part of the completion, sealed: nonce, AES-256-GCM ciphertext, tag' CODEC(NONE) AFTER completion_kid;

-- Keyed by kid alone, which is random and names one key anywhere. A lookup is a function of a column (joinGet), so a query that
-- names no personal column does nothing for it; deletions take effect at once and leave no old file behind.
CREATE TABLE IF NOT EXISTS tidegate.subject_keys
(
    tenant String COMMENT 'Whose key this is',
    subject_id String COMMENT 'Pseudonym of the subject whose personal parts it opens',
    kid String COMMENT 'Names the key: 32 hex digits',
    key String COMMENT 'Secret: the data key, 32 bytes',
    created_at DateTime64(6, 'UTC') COMMENT 'When an edge made it'
)
ENGINE = Join(ANY, LEFT, kid)
COMMENT 'Data keys of subjects that were not erased. Never backed up; no reader needs it';

CREATE TABLE IF NOT EXISTS tidegate.erasures
(
    tenant LowCardinality(String) COMMENT 'Whose subject this is',
    subject_id String COMMENT 'Pseudonym of the subject' CODEC(ZSTD(1)),
    kid String COMMENT 'A key that was destroyed; empty: every key up to erased_at' CODEC(ZSTD(1)),
    erased_at DateTime64(6, 'UTC') COMMENT 'When' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(erased_at)
ORDER BY (tenant, subject_id, kid)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Erasures, as the log tells of them';

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
    catalog LowCardinality(String) COMMENT 'Digest of the server''s definitions at the decision',
    groups Array(String) COMMENT 'Groups of the subject at the decision',
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
    issuer String COMMENT 'Personal: token issuer',
    subject String COMMENT 'Personal: the token''s sub',
    login String COMMENT 'Personal: login or e-mail',
    claimed_client String COMMENT 'Personal: the client''s own name for itself; a hint, never an identity',
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
    bundle, release, catalog, groups, control_epoch, error_code, policy_us, upstream_us, total_us,
    arguments_bytes, arguments_digest, arguments_capture, arguments_kept, arguments_fingerprints,
    result_bytes, result_digest, result_capture, result_fingerprints,
    arrayConcat(arguments_findings, result_findings) AS findings, masked,
    greatest(raw.issuer, replaceAll(simpleJSONExtractString(request.1, 'issuer'), '\x01\x01', '\\')) AS issuer,
    greatest(raw.subject, replaceAll(simpleJSONExtractString(request.1, 'subject'), '\x01\x01', '\\')) AS subject,
    greatest(raw.login, replaceAll(simpleJSONExtractString(request.1, 'login'), '\x01\x01', '\\'), replaceAll(simpleJSONExtractString(completion.1, 'login'), '\x01\x01', '\\')) AS login,
    greatest(raw.claimed_client, replaceAll(simpleJSONExtractString(request.1, 'claimed_client'), '\x01\x01', '\\')) AS claimed_client,
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
