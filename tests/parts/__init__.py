"""Real servers for tests and benchmarks: Kafka and Valkey, on loopback, on free ports, gone when their user is gone."""
