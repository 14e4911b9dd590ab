run "both_regions_are_sized_and_checked" {
  assert {
    condition     = output.regions["eu-central-1"].edges == 5 && output.regions["us-east-1"].edges == 3
    error_message = "got ${output.regions["eu-central-1"].edges} and ${output.regions["us-east-1"].edges}"
  }
  assert {
    condition     = yamldecode(output.settings["us-east-1"]).kafka.prefix == "tidegate.example."
    error_message = "the settings name another topic prefix"
  }
}
