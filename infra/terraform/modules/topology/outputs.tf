output "regions" {
  description = "What each region needs."
  value = {
    for name, region in local.regions : name => {
      zones          = region.zones
      edges          = local.edges[name]
      cores_per_edge = var.cores_per_edge

      # A spool holds an outage at the peak, on the edges that are left when a zone is gone, and half as much again.
      spool_gib = max(1, ceil(
        region.bytes_per_s / max(1, floor(local.edges[name] * max(1, region.zones - 1) / region.zones))
        * var.outage_minutes * 60 * 1.5 / pow(1024, 3)
      ))

      kafka = {
        brokers     = local.brokers[name]
        partitions  = local.partitions[name]
        replication = var.replication
        min_insync  = max(1, var.replication - 1)
        disk_gib_per_broker = ceil(
          region.bytes_per_s * var.duty * 86400 * var.retention_days * var.replication * 1.3 / local.brokers[name] / pow(1024, 3)
        )
      }

      clickhouse = {
        shards             = local.shards[name]
        replicas           = region.zones > 1 ? 2 : 1
        disk_gib_per_shard = max(10, ceil(region.calls_per_second * var.duty * 86400 * var.analytics_days * var.analytics_bytes_per_call * 1.3 / local.shards[name] / pow(1024, 3)))
      }

      # A session's record is under 2 kB; twice that for the server's own structures, and twice for growth.
      sessions_mib = max(256, ceil(region.sessions * 2048 * 4 / pow(1024, 2)))
    }
  }
}
