# The log on Amazon MSK: brokers over three zones, TLS everywhere, SCRAM for Tidegate's processes.
# Checked by `terraform fmt` alone, see ../../../README.md. Counterparts: `log`, `kafka.tls` and `kafka.sasl` of tidegate.yaml.
terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.60, < 7.0"
    }
  }
}

variable "name" {
  description = "From the naming module: part[\"kafka\"]."
  type        = string
}

variable "region" {
  description = "The region as the validation module gives it."
  type = object({
    kafka = object({ brokers = number, replication = number, min_insync = number, disk_gib_per_broker = number })
  })
}

variable "subnet_ids" {
  description = "One private subnet per zone."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids: brokers need subnets in two zones or more."
  }
}

variable "security_group_ids" {
  description = "Groups that let Tidegate's processes reach port 9096, and nobody else."
  type        = list(string)
}

variable "kms_key_arn" {
  description = "The key that encrypts brokers' disks and the credentials."
  type        = string
}

variable "instance_type" {
  type    = string
  default = "kafka.m7g.large"
}

variable "kafka_version" {
  description = "As MSK names it."
  type        = string
  default     = "4.1.x.kraft" # the release that Tidegate's own tests run
}

variable "labels" {
  type    = map(string)
  default = {}
}

locals {
  # MSK asks for a multiple of the zones.
  brokers = ceil(var.region.kafka.brokers / length(var.subnet_ids)) * length(var.subnet_ids)
}

resource "aws_msk_configuration" "log" {
  name           = var.name
  kafka_versions = [var.kafka_version]

  server_properties = <<-EOT
    auto.create.topics.enable=false
    default.replication.factor=${var.region.kafka.replication}
    min.insync.replicas=${var.region.kafka.min_insync}
    unclean.leader.election.enable=false
  EOT
}

resource "aws_msk_cluster" "log" {
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = local.brokers
  tags                   = var.labels

  broker_node_group_info {
    instance_type   = var.instance_type
    client_subnets  = var.subnet_ids
    security_groups = var.security_group_ids

    storage_info {
      ebs_storage_info {
        volume_size = var.region.kafka.disk_gib_per_broker
      }
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.log.arn
    revision = aws_msk_configuration.log.latest_revision
  }

  client_authentication {
    sasl {
      scram = true
    }
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = var.kms_key_arn

    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  open_monitoring {
    prometheus {
      jmx_exporter {
        enabled_in_broker = true
      }
      node_exporter {
        enabled_in_broker = true
      }
    }
  }

  lifecycle {
    prevent_destroy = true # the log is the truth
  }
}

output "bootstrap" {
  description = "`log`: kafka://{this}."
  value       = aws_msk_cluster.log.bootstrap_brokers_sasl_scram
}
