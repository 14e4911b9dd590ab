"""Policy: bundles of Cedar rules, their releases, the engine that decides by them, and quarantines."""
