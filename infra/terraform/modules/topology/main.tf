# From calls per second to edges, partitions, brokers, shards and disks, region by region. No provider: pure arithmetic.
# Every figure that depends on hardware is a variable: measure with `make bench` and loadtests/, then set it.
terraform {
  required_version = ">= 1.9"
}

locals {
  regions = {
    for name, region in var.regions : name => {
      zones            = region.zones
      calls_per_second = region.calls_per_second

      # Edges carry the load with one zone gone: what is left after losing a zone still suffices.
      edges_for_load = ceil(region.calls_per_second / (var.calls_per_core_per_second * var.cores_per_edge * var.target_utilisation))
      bytes_per_s    = region.calls_per_second * var.bytes_per_call
      events_per_s   = region.calls_per_second * 2
      sessions       = region.sessions
    }
  }

  edges = {
    for name, region in local.regions : name =>
    max(2, region.zones, ceil(region.edges_for_load * region.zones / max(1, region.zones - 1)))
  }

  brokers = {
    for name, region in local.regions : name =>
    max(var.replication, ceil(region.bytes_per_s * var.replication / var.bytes_per_broker_per_second))
  }

  # A power of two (logarithms are not exact: hence the hair's breadth), so that growing later splits evenly; the number can be raised, never lowered.
  partitions = {
    for name, region in local.regions : name =>
    pow(2, ceil(log(max(8, local.edges[name], region.events_per_s / var.events_per_partition_per_second), 2) - 0.000001))
  }

  shards = {
    for name, region in local.regions : name => max(1, ceil(region.events_per_s / var.rows_per_shard_per_second))
  }
}
