# What has to be true of a region before anything is built. No provider: a plan fails with the sentence of what is wrong.
terraform {
  required_version = ">= 1.9"
}

variable "region" {
  description = "One region of the topology module's output, as it is going to be built."
  type = object({
    zones          = number
    edges          = number
    cores_per_edge = number
    spool_gib      = number
    kafka = object({
      brokers             = number
      partitions          = number
      replication         = number
      min_insync          = number
      disk_gib_per_broker = number
    })
    clickhouse = object({
      shards             = number
      replicas           = number
      disk_gib_per_shard = number
    })
    sessions_mib = number
  })
}

variable "production" {
  description = "False for trials, where one copy of the log is enough."
  type        = bool
  default     = true
}

resource "terraform_data" "checked" {
  input = var.region

  lifecycle {
    precondition {
      condition     = var.region.kafka.brokers >= var.region.kafka.replication
      error_message = "kafka: ${var.region.kafka.replication} copies need as many brokers; there are ${var.region.kafka.brokers}."
    }
    precondition {
      condition     = var.region.kafka.min_insync <= max(1, var.region.kafka.replication - 1)
      error_message = "kafka: with min_insync ${var.region.kafka.min_insync} of ${var.region.kafka.replication} copies, one broker's restart stops every write."
    }
    precondition {
      condition     = !var.production || (var.region.kafka.replication >= 3 && var.region.kafka.min_insync >= 2)
      error_message = "kafka: production needs replication 3 and min_insync 2; the log is the truth, and one copy of it can be lost."
    }
    precondition {
      condition     = !var.production || var.region.edges >= 2
      error_message = "edges: production needs two, so that one can be restarted."
    }
    precondition {
      condition     = !var.production || var.region.zones >= 2
      error_message = "zones: production needs two or more."
    }
    precondition {
      condition     = var.region.spool_gib >= 1
      error_message = "spool_gib: an edge needs 1 GiB or more for records that Kafka has not acknowledged."
    }
  }
}

output "region" {
  description = "The region, checked: build from this one."
  value       = terraform_data.checked.output
}
