"""Personal fields sealed per subject, so that they can be erased without rewriting what was recorded."""
