"""The audit consumer: the log into ClickHouse, each event once. Start reading at `spine.py`."""
