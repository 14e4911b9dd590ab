"""Every feature, for every official client, at a server of either era: directly, and through the gateway."""
