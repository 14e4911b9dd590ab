"""What connects an agent to a running Tidegate, ready to paste. Pure. Counterpart: docs/connect.md."""

import shlex

import msgspec


def claude_code(url: str, token: str) -> str:
    """One command for Claude Code."""
    return f"claude mcp add --transport http tidegate {url} --header {shlex.quote(f'Authorization: Bearer {token}')}"


def cursor(url: str) -> str:
    """The content of .cursor/mcp.json; Cursor reads the token from its environment."""
    headers = {"Authorization": "Bearer ${env:TIDEGATE_TOKEN}"}
    return _json({"mcpServers": {"tidegate": {"url": url, "headers": headers}}})


def vs_code(url: str) -> str:
    """The content of .vscode/mcp.json; VS Code asks for the token once and keeps it out of the file."""
    asked = {"type": "promptString", "id": "tidegate-token", "description": "Tidegate token", "password": True}
    headers = {"Authorization": "Bearer ${input:tidegate-token}"}
    return _json({"inputs": [asked], "servers": {"tidegate": {"type": "http", "url": url, "headers": headers}}})


def _json(document: object) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
