-- For a ClickHouse server only, see 0001: older parts move to slower storage. Needs a storage policy `tidegate_tiered` with the
-- volumes `hot` and `cold` (for instance an S3 disk) in the server's configuration. Nothing is deleted: how long records are kept
-- is the operator's to say, and `tidegate verify` calls missing what a root covers and the table has lost.
ALTER TABLE tidegate.calls_raw MODIFY SETTING storage_policy = 'tidegate_tiered';
ALTER TABLE tidegate.events_raw MODIFY SETTING storage_policy = 'tidegate_tiered';
ALTER TABLE tidegate.calls_raw MODIFY TTL toDateTime(requested_at) + INTERVAL 30 DAY TO VOLUME 'cold';
ALTER TABLE tidegate.events_raw MODIFY TTL toDateTime(time) + INTERVAL 7 DAY TO VOLUME 'cold';
