variable "regions" {
  description = "Load by region: calls per second at the peak, open sessions, and availability zones."
  type = map(object({
    calls_per_second = number
    sessions         = optional(number, 10000)
    zones            = optional(number, 3)
  }))

  validation {
    condition     = length(var.regions) > 0
    error_message = "regions: name at least one region."
  }
  validation {
    condition     = alltrue([for region in values(var.regions) : region.calls_per_second > 0 && region.sessions > 0])
    error_message = "regions: calls_per_second and sessions are greater than 0."
  }
  validation {
    condition     = alltrue([for region in values(var.regions) : region.zones >= 1 && region.zones <= 6 && floor(region.zones) == region.zones])
    error_message = "regions: zones is a whole number from 1 to 6."
  }
}

variable "calls_per_core_per_second" {
  description = "Governed calls that one core of yours carries at full load."
  type        = number
  # Careful on purpose. The design aims at 10,000; set what `make bench` measures on your machines.
  default = 2000

  validation {
    condition     = var.calls_per_core_per_second > 0
    error_message = "calls_per_core_per_second is greater than 0; `make bench` measures it."
  }
}

variable "cores_per_edge" {
  description = "Cores of an edge. One process uses one core for calls; more cores are more processes, each with its own spool."
  type        = number
  default     = 2

  validation {
    condition     = var.cores_per_edge >= 1 && floor(var.cores_per_edge) == var.cores_per_edge
    error_message = "cores_per_edge is a whole number from 1."
  }
}

variable "target_utilisation" {
  description = "How full an edge's cores may be at the peak."
  type        = number
  default     = 0.6

  validation {
    condition     = var.target_utilisation > 0 && var.target_utilisation <= 0.9
    error_message = "target_utilisation is greater than 0 and at most 0.9: bursts need room."
  }
}

variable "bytes_per_call" {
  description = "Bytes that a call adds to the log: both of its events, arguments and result as captured."
  type        = number
  default     = 2400 # two events of 1.2 kB: arguments and results of about 1 kB, masked capture

  validation {
    condition     = var.bytes_per_call >= 600
    error_message = "bytes_per_call is at least 600: two events without any content."
  }
}

variable "replication" {
  description = "Copies of the log in Kafka."
  type        = number
  default     = 3
}

variable "events_per_partition_per_second" {
  description = "Events of one partition that the audit consumer and the detector keep up with."
  type        = number
  default     = 5000
}

variable "bytes_per_broker_per_second" {
  description = "Bytes that a broker writes, replicas included, at its peak."
  type        = number
  default     = 50000000
}

variable "retention_days" {
  description = "Days that Kafka keeps calls; ClickHouse keeps them longer."
  type        = number
  default     = 30
}

variable "rows_per_shard_per_second" {
  description = "Rows that a ClickHouse shard takes in with room for queries."
  type        = number
  default     = 50000 # the embedded engine took in about 220,000 rows a second as Python rows, alone on its machine
}

variable "analytics_days" {
  description = "Days that ClickHouse keeps calls."
  type        = number
  default     = 365
}

variable "analytics_bytes_per_call" {
  description = "Bytes on ClickHouse's disk for a call, compressed."
  type        = number
  default     = 700
}

variable "duty" {
  description = "Mean load over a day as a part of the peak; disks are sized by the mean."
  type        = number
  default     = 0.3

  validation {
    condition     = var.duty > 0 && var.duty <= 1
    error_message = "duty is greater than 0 and at most 1."
  }
}

variable "outage_minutes" {
  description = "How long an edge goes on without Kafka before its spool is full and it refuses calls."
  type        = number
  default     = 30
}
