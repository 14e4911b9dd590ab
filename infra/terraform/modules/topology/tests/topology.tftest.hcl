variables {
  regions = { "eu-central-1" = { calls_per_second = 6000 } }
}

run "edges_carry_the_peak_with_one_zone_gone" {
  # 6,000 calls / (2,000 a core × 2 cores × 0.6) = 2.5, so 3 edges for the load; with one of three zones gone: 5.
  assert {
    condition     = output.regions["eu-central-1"].edges == 5
    error_message = "got ${output.regions["eu-central-1"].edges}"
  }
  assert {
    condition     = floor(output.regions["eu-central-1"].edges * 2 / 3) * 2000 * 2 * 0.6 >= 6000
    error_message = "what is left after losing a zone does not carry the peak"
  }
}

run "a_small_region_still_has_an_edge_in_each_zone" {
  variables {
    regions = { "eu-central-1" = { calls_per_second = 1 } }
  }
  assert {
    condition     = output.regions["eu-central-1"].edges == 3
    error_message = "got ${output.regions["eu-central-1"].edges}"
  }
}

run "one_zone_still_has_two_edges" {
  variables {
    regions = { "eu-central-1" = { calls_per_second = 1, zones = 1 } }
  }
  assert {
    condition     = output.regions["eu-central-1"].edges == 2
    error_message = "got ${output.regions["eu-central-1"].edges}"
  }
  assert {
    condition     = output.regions["eu-central-1"].clickhouse.replicas == 1
    error_message = "one zone does not need a second replica"
  }
}

run "partitions_are_a_power_of_two_that_keeps_up" {
  variables {
    regions = { "eu-central-1" = { calls_per_second = 50000 } }
  }
  assert { # 100,000 events a second / 5,000 = 20; 50,000 calls need 32 edges or more with a zone gone
    condition     = output.regions["eu-central-1"].kafka.partitions == 32
    error_message = "got ${output.regions["eu-central-1"].kafka.partitions}"
  }
  assert {
    condition     = output.regions["eu-central-1"].kafka.partitions >= output.regions["eu-central-1"].edges
    error_message = "fewer partitions than edges"
  }
  assert {
    condition     = output.regions["eu-central-1"].clickhouse.shards == 2
    error_message = "got ${output.regions["eu-central-1"].clickhouse.shards}"
  }
}

run "a_write_needs_all_replicas_but_one" {
  assert {
    condition     = output.regions["eu-central-1"].kafka.min_insync == 2 && output.regions["eu-central-1"].kafka.brokers >= 3
    error_message = "replication 3 needs min_insync 2 and three brokers"
  }
}

run "a_spool_holds_the_outage" {
  # 6,000 × 2,400 B / 3 edges left × 1,800 s × 1.5 = 12.07 GiB
  assert {
    condition     = output.regions["eu-central-1"].spool_gib == 13
    error_message = "got ${output.regions["eu-central-1"].spool_gib}"
  }
}

run "twice_the_load_never_needs_less" {
  variables {
    regions = { "one" = { calls_per_second = 7000 }, "two" = { calls_per_second = 14000 } }
  }
  assert {
    condition = alltrue([
      output.regions["two"].edges >= output.regions["one"].edges,
      output.regions["two"].kafka.partitions >= output.regions["one"].kafka.partitions,
      output.regions["two"].kafka.disk_gib_per_broker * output.regions["two"].kafka.brokers > output.regions["one"].kafka.disk_gib_per_broker * output.regions["one"].kafka.brokers,
      output.regions["two"].clickhouse.shards >= output.regions["one"].clickhouse.shards,
    ])
    error_message = "twice the calls got a smaller deployment"
  }
}

run "no_region_is_refused" {
  command = plan
  variables {
    regions = {}
  }
  expect_failures = [var.regions]
}

run "no_load_is_refused" {
  command = plan
  variables {
    regions = { "eu-central-1" = { calls_per_second = 0 } }
  }
  expect_failures = [var.regions]
}

run "full_cores_are_refused" {
  command = plan
  variables {
    target_utilisation = 1
  }
  expect_failures = [var.target_utilisation]
}
