-- For a ClickHouse server only, see 0001. Readers query `calls` without a right to the keys with which it opens sealed parts: the
-- view runs with the rights of an account to which nobody can sign in. Row policies are those of that account then, so `calls`
-- itself shows an account that has SQL_tenant (0002) the rows of that tenant alone. Run this again after an upgrade that defined
-- `calls` anew: until then readers are refused, and nothing is shown to them.
CREATE USER IF NOT EXISTS tidegate_opener HOST NONE;
GRANT SELECT ON tidegate.calls_raw TO tidegate_opener;
GRANT SELECT ON tidegate.parameters TO tidegate_opener;
GRANT SELECT ON tidegate.subject_keys TO tidegate_opener;
GRANT SELECT ON tidegate.erasures TO tidegate_opener;
REVOKE SELECT ON tidegate.subject_keys FROM tidegate_reader;
GRANT SELECT(tenant, subject_id, kid, created_at) ON tidegate.subject_keys TO tidegate_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_keys ON tidegate.subject_keys USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
ALTER TABLE tidegate.calls MODIFY SQL SECURITY DEFINER DEFINER = tidegate_opener;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_erasures ON tidegate.erasures USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
