-- For a ClickHouse server only, see 0001. A tenant's reader sees the counts of its own calls alone, as it sees its calls: the
-- views by minute and hour read these tables with the rights of who asks. The counting itself runs as the account that applied
-- the migrations.
CREATE ROW POLICY IF NOT EXISTS tidegate_own_minutes ON tidegate.minutes_raw USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_minutes_marks ON tidegate.minutes_marks USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_hours ON tidegate.hours_raw USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
CREATE ROW POLICY IF NOT EXISTS tidegate_own_hours_marks ON tidegate.hours_marks USING tenant = getSetting('SQL_tenant') TO tidegate_tenant_reader;
GRANT SYSTEM VIEWS ON tidegate.* TO tidegate_writer;
-- An account for dashboards. Nobody can sign in to it until an administrator gives it a password and hosts (ALTER USER).
CREATE USER IF NOT EXISTS tidegate_dashboards HOST NONE DEFAULT ROLE tidegate_reader;
GRANT tidegate_reader TO tidegate_dashboards;
