# Names and labels, the same everywhere. No provider. Counterpart: `kafka.prefix` and `region` of tidegate.yaml.
terraform {
  required_version = ">= 1.9"
}

variable "environment" {
  description = "Which installation this is: prod, staging, a team's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,11}$", var.environment))
    error_message = "environment: 2 to 12 of a-z and 0-9, beginning with a letter; it is part of bucket names."
  }
}

variable "region" {
  description = "The region as the cloud names it, for example eu-central-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,}(-[a-z0-9]+)+$", var.region))
    error_message = "region: lower-case words joined by '-', for example eu-central-1."
  }
}

variable "owner" {
  description = "The team that answers for it; goes into labels."
  type        = string

  validation {
    condition     = length(trimspace(var.owner)) > 0
    error_message = "owner: name the team that answers for this installation."
  }
}

locals {
  name = "tidegate-${var.environment}-${var.region}"
}

output "name" {
  description = "Prefix of every resource's name."
  value       = local.name
}

output "part" {
  description = "The name of each part."
  value = {
    for part in ["edge", "policy", "audit-consumer", "detector", "kafka", "sessions", "clickhouse", "archive"] :
    part => "${local.name}-${part}"
  }
}

output "topic_prefix" {
  description = "`kafka.prefix`: topics of two installations never meet on one cluster."
  value       = "tidegate.${var.environment}."
}

output "labels" {
  description = "Labels of every resource."
  value = {
    "tidegate/environment" = var.environment
    "tidegate/region"      = var.region
    "tidegate/owner"       = trimspace(var.owner)
  }
}
