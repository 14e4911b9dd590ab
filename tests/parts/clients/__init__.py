"""Programs that talk MCP to a running Tidegate, or stand behind it."""
