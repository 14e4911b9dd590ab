# A bucket whose objects nobody can change or delete before their time (S3 Object Lock, compliance mode), for copies of the log.
# Checked by `terraform fmt` alone, see ../../../README.md.
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
  description = "From the naming module: part[\"archive\"]. Bucket names are global: add what makes yours unique."
  type        = string
}

variable "retention_days" {
  description = "Days for which an object cannot be deleted, not even by the account's root."
  type        = number

  validation {
    condition     = var.retention_days >= 1 && var.retention_days <= 3650
    error_message = "retention_days is 1 to 3650; compliance mode cannot be shortened afterwards."
  }
}

variable "kms_key_arn" {
  type = string
}

variable "labels" {
  type    = map(string)
  default = {}
}

resource "aws_s3_bucket" "archive" {
  bucket              = var.name
  object_lock_enabled = true
  tags                = var.labels

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "archive" {
  bucket = aws_s3_bucket.archive.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_object_lock_configuration" "archive" {
  bucket     = aws_s3_bucket.archive.id
  depends_on = [aws_s3_bucket_versioning.archive]

  rule {
    default_retention {
      mode = "COMPLIANCE"
      days = var.retention_days
    }
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "archive" {
  bucket                  = aws_s3_bucket.archive.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

output "bucket" {
  value = aws_s3_bucket.archive.id
}
