# Two regions of one installation: names, sizes, checks, and the part of tidegate.yaml that follows from them.
# `terraform apply` here creates nothing in a cloud; it answers what to build.
terraform {
  required_version = ">= 1.9"
}

variable "environment" {
  type    = string
  default = "example"
}

variable "domain" {
  description = "Agents reach a region at https://REGION.DOMAIN/mcp."
  type        = string
  default     = "mcp.example.com"
}

variable "regions" {
  description = "Load by region, as modules/topology takes it."
  type = map(object({
    calls_per_second = number
    sessions         = optional(number, 10000)
    zones            = optional(number, 3)
  }))
  default = {
    eu-central-1 = { calls_per_second = 6000, sessions = 40000 }
    us-east-1    = { calls_per_second = 2500 }
  }
}

module "naming" {
  source      = "../../modules/naming"
  for_each    = var.regions
  environment = var.environment
  region      = each.key
  owner       = "platform"
}

module "topology" {
  source  = "../../modules/topology"
  regions = var.regions
}

module "validation" {
  source   = "../../modules/validation"
  for_each = var.regions
  region   = module.topology.regions[each.key]
}

output "regions" {
  description = "What each region needs, checked."
  value       = { for name, checked in module.validation : name => merge(checked.region, { name = module.naming[name].name }) }
}

output "settings" {
  description = "tidegate.yaml of each region, but for servers, identity and keys, which are yours."
  value = {
    for name, checked in module.validation : name => yamlencode({
      listen     = "0.0.0.0:8080"
      public_url = "https://${name}.${var.domain}"
      data       = "/var/lib/tidegate"
      region     = name
      log        = "kafka://${module.naming[name].part["kafka"]}:9092"
      kafka = {
        prefix         = module.naming[name].topic_prefix
        partitions     = checked.region.kafka.partitions
        replication    = checked.region.kafka.replication
        min_insync     = checked.region.kafka.min_insync
        retention_days = 30
      }
      sessions  = "rediss://${module.naming[name].part["sessions"]}:6379/0"
      analytics = "clickhouses://tidegate@${module.naming[name].part["clickhouse"]}:8443/tidegate"
      limits    = { spool_bytes_max = floor(checked.region.spool_gib * pow(1024, 3) * 0.9) }
    })
  }
}
