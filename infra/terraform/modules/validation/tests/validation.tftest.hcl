variables {
  region = {
    zones          = 3
    edges          = 5
    cores_per_edge = 2
    spool_gib      = 13
    kafka          = { brokers = 3, partitions = 16, replication = 3, min_insync = 2, disk_gib_per_broker = 500 }
    clickhouse     = { shards = 1, replicas = 2, disk_gib_per_shard = 1000 }
    sessions_mib   = 256
  }
}

run "a_sound_region_passes_unchanged" {
  assert {
    condition     = output.region.edges == 5 && output.region.kafka.partitions == 16
    error_message = "the checked region differs from the given one"
  }
}

run "fewer_brokers_than_copies_are_refused" {
  command = plan
  variables {
    region = {
      zones          = 3
      edges          = 5
      cores_per_edge = 2
      spool_gib      = 13
      kafka          = { brokers = 2, partitions = 16, replication = 3, min_insync = 2, disk_gib_per_broker = 500 }
      clickhouse     = { shards = 1, replicas = 2, disk_gib_per_shard = 1000 }
      sessions_mib   = 256
    }
  }
  expect_failures = [terraform_data.checked]
}

run "all_copies_in_sync_is_refused" {
  command = plan
  variables {
    region = {
      zones          = 3
      edges          = 5
      cores_per_edge = 2
      spool_gib      = 13
      kafka          = { brokers = 3, partitions = 16, replication = 3, min_insync = 3, disk_gib_per_broker = 500 }
      clickhouse     = { shards = 1, replicas = 2, disk_gib_per_shard = 1000 }
      sessions_mib   = 256
    }
  }
  expect_failures = [terraform_data.checked]
}

run "one_copy_is_refused_in_production" {
  command = plan
  variables {
    region = {
      zones          = 3
      edges          = 5
      cores_per_edge = 2
      spool_gib      = 13
      kafka          = { brokers = 1, partitions = 16, replication = 1, min_insync = 1, disk_gib_per_broker = 500 }
      clickhouse     = { shards = 1, replicas = 1, disk_gib_per_shard = 1000 }
      sessions_mib   = 256
    }
  }
  expect_failures = [terraform_data.checked]
}

run "one_copy_will_do_for_a_trial" {
  command = plan
  variables {
    production = false
    region = {
      zones          = 1
      edges          = 1
      cores_per_edge = 2
      spool_gib      = 1
      kafka          = { brokers = 1, partitions = 8, replication = 1, min_insync = 1, disk_gib_per_broker = 50 }
      clickhouse     = { shards = 1, replicas = 1, disk_gib_per_shard = 50 }
      sessions_mib   = 256
    }
  }
}
