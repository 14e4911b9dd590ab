"""Analytics: the port, its ClickHouse adapter and the loopback server of the embedded engine."""
