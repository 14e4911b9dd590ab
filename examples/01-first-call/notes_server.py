"""A notice board as an MCP server over streamable HTTP, on the official SDK: the demo's way out of the house.

It is part of the example, unlike the other two servers, which are taken from PyPI as they are. Notes live in memory.
"""

import argparse
import os
import sys
import threading

from mcp.server.mcpserver import MCPServer

NOTES_MAX = 1_000

server = MCPServer("notes")
_notes: list[tuple[str, str]] = []


@server.tool()
def add_note(title: str, text: str) -> str:
    """Pin a note to the board, where everybody reads it."""
    if len(_notes) >= NOTES_MAX:
        del _notes[0]
    _notes.append((title, text))
    return f"Pinned note {len(_notes)}: {title}"


@server.tool()
def list_notes() -> str:
    """The titles of all notes on the board."""
    return "\n".join(f"{number}. {title}" for number, (title, _) in enumerate(_notes, 1)) or "The board is empty."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=int(os.environ.get("NOTES_PORT", "8090")))
    parser.add_argument("--end-with-stdin", action="store_true", help="end with the process that started this")
    options = parser.parse_args()
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    server.run("streamable-http", host="127.0.0.1", port=options.port)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
