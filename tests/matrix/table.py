"""The matrix as a page of the docs: `python -m tests.matrix.table` runs it through the gateway and writes the page.

Counterpart: test_matrix.py, which fails where the page says another thing than a run.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.matrix.cells import CLIENTS, SERVERS, Server
from tests.matrix.driving import ROOT
from tests.matrix.features import FEATURES, RULES
from tests.matrix.running import Result, Results, running_matrix

PAGE: Final = ROOT / "docs" / "matrix.md"
SIGNS: Final = {"works": "✓", "translated": "↺", "refused": "–", "failed": "✗"}
TITLES: Final[dict[Server, str]] = {
    "legacy": "A server of the handshake era (mcp 1.30: 2025-11-25 and before)",
    "resumable": "A server of the handshake era whose streams can be taken up again (mcp 1.30 with event ids)",
    "dual": "A server of both eras (mcp 2.3): the client's era is mirrored",
    "modern": "A server of the modern era alone (mcp 2.3: 2026-07-28)",
}
HEAD: Final = """\
# Every feature, for every client, at every server

Written by `python -m tests.matrix.table` from a run through the gateway, at `/mcp/{server}`; `tests/matrix` fails where
this page and a run differ. The clients are the official SDKs of three generations, each with its own handling of the
protocol; each exercise asserts what the client hears *and* what the server saw.

✓ works, in the era that client and server share · ↺ works, translated between the eras · – refused, in the way that the
specification asks for, by the rule of the number
"""


def page(results: Results) -> str:
    """The whole page."""
    rules = [key for key in RULES if any(one.words == "refused" and one.why == key for one in results.values())]
    lines = [HEAD]
    for server in SERVERS:
        lines += [f"## {TITLES[server]}", "", *_table(server, results, rules), ""]
    lines += ["## Why refused", "", *(f"{number}. {RULES[key]}" for number, key in enumerate(rules, 1))]
    return "\n".join(lines) + "\n"


def _table(server: Server, results: Results, rules: list[str]) -> Iterator[str]:
    yield f"| feature | {' | '.join(client.title for client in CLIENTS)} |"
    yield f"|---{'|:-:' * len(CLIENTS)}|"
    for feature in FEATURES:
        signs = (_sign(results[client.key, server, feature.title], rules) for client in CLIENTS)
        yield f"| {feature.title} | {' | '.join(signs)} |"


def _sign(result: Result, rules: list[str]) -> str:
    return SIGNS[result.words] + (f" {rules.index(result.why) + 1}" if result.words == "refused" else "")


async def _write() -> int:
    with tempfile.TemporaryDirectory(prefix="matrix-") as directory:
        async with running_matrix(Path(directory), ("door",)) as matrix:
            results = await matrix.run("door")
    PAGE.write_text(page(results))
    failed = [(key, result.why) for key, result in results.items() if result.words == "failed"]
    for (client, server, title), why in failed:
        print(f"{client} at {server}: {title}: {why}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="Run the matrix at the servers' own doors and write docs/matrix.md."
    ).parse_args()
    sys.exit(1 if asyncio.run(_write()) else 0)
