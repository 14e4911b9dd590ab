variables {
  environment = "prod"
  region      = "eu-central-1"
  owner       = "platform"
}

run "names_say_installation_region_and_part" {
  assert {
    condition     = output.part["audit-consumer"] == "tidegate-prod-eu-central-1-audit-consumer"
    error_message = "got ${output.part["audit-consumer"]}"
  }
  assert {
    condition     = output.topic_prefix == "tidegate.prod."
    error_message = "got ${output.topic_prefix}"
  }
}

run "names_fit_a_bucket" {
  variables {
    environment = "abcdefghijkl"
    region      = "ap-southeast-2"
  }
  assert {
    condition     = alltrue([for name in values(output.part) : length(name) <= 63])
    error_message = "a part's name is longer than 63 characters"
  }
}

run "an_environment_with_a_hyphen_is_refused" {
  command = plan
  variables {
    environment = "prod-1"
  }
  expect_failures = [var.environment]
}

run "a_region_in_capitals_is_refused" {
  command = plan
  variables {
    region = "EU"
  }
  expect_failures = [var.region]
}

run "an_installation_has_an_owner" {
  command = plan
  variables {
    owner = "  "
  }
  expect_failures = [var.owner]
}
