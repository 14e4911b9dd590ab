# Session records and counters on ElastiCache (Valkey), one primary and a replica in another zone.
# Losing them ends sessions and nothing else: no snapshots. Checked by `terraform fmt` alone, see ../../../README.md.
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
  description = "From the naming module: part[\"sessions\"]."
  type        = string

  validation {
    condition     = length(var.name) <= 40
    error_message = "name: ElastiCache takes 40 characters; shorten the environment's name."
  }
}

variable "region" {
  description = "The region as the validation module gives it."
  type        = object({ zones = number, sessions_mib = number })
}

variable "subnet_ids" {
  type = list(string)
}

variable "security_group_ids" {
  description = "Groups that let edges reach port 6379, and nobody else."
  type        = list(string)
}

variable "auth_token" {
  description = "The password in `sessions: rediss://:{this}@…`; keep it in a secret store."
  type        = string
  sensitive   = true
}

variable "labels" {
  type    = map(string)
  default = {}
}

locals {
  node_type = (
    var.region.sessions_mib <= 1024 ? "cache.t4g.small" :
    var.region.sessions_mib <= 6144 ? "cache.m7g.large" : "cache.r7g.large"
  )
}

resource "aws_elasticache_subnet_group" "sessions" {
  name       = var.name
  subnet_ids = var.subnet_ids
}

resource "aws_elasticache_parameter_group" "sessions" {
  name   = var.name
  family = "valkey8"

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction" # a full store refuses new sessions; it never drops open ones
  }
}

resource "aws_elasticache_replication_group" "sessions" {
  replication_group_id       = var.name
  description                = "Tidegate sessions"
  engine                     = "valkey"
  engine_version             = "8.0"
  node_type                  = local.node_type
  num_cache_clusters         = var.region.zones > 1 ? 2 : 1
  automatic_failover_enabled = var.region.zones > 1
  multi_az_enabled           = var.region.zones > 1
  parameter_group_name       = aws_elasticache_parameter_group.sessions.name
  subnet_group_name          = aws_elasticache_subnet_group.sessions.name
  security_group_ids         = var.security_group_ids
  at_rest_encryption_enabled = true
  transit_encryption_enabled = true
  auth_token                 = var.auth_token
  snapshot_retention_limit   = 0
  tags                       = var.labels
}

output "address" {
  description = "Host of `sessions`: rediss://{this}:6379/0."
  value       = aws_elasticache_replication_group.sessions.primary_endpoint_address
}
