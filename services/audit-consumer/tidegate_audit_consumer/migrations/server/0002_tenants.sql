-- For a ClickHouse server only, see 0001. A tenant's own reader: the session's setting SQL_tenant names the tenant whose rows it
-- sees (custom_settings_prefixes must contain SQL_). Give each such account its SQL_tenant as a CONST setting.
-- No tenant is named '-': an account without a SQL_tenant of its own sees no rows, in `calls` (0005) as well.
CREATE ROLE IF NOT EXISTS tidegate_tenant_reader SETTINGS SQL_tenant = '-';
GRANT tidegate_reader TO tidegate_tenant_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_calls ON tidegate.calls_raw USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_events ON tidegate.events_raw USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_findings ON tidegate.findings_raw USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
