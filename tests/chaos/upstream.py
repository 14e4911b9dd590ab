"""A server whose record of the calls that reached it outlives everything: each nonce is in a file before its answer.

`python -m tests.chaos.upstream modern DIRECTORY` prints {"url"}. Beside the tools of its model it has `slow`, which
takes the `seconds` it is given, at most `SLOW_MAX_S`. Nobody kills it. Counterpart: `balance.py`, which reads the file.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.parts.restless import Restless
from tests.parts.scripted import Seen, http, result, text, tool

SLOW_MAX_S: Final = 5.0
TOOLS: Final = ("echo", "fail", "slow")
FILE: Final = "came"


@dataclass
class Remembering(Restless):
    """Each line of its file is the nonce of a tools/call, in the order of arrival."""

    tools: list[dict[str, Any]] = field(default_factory=lambda: [tool(name) for name in TOOLS])
    file: int = -1

    async def _called(self, seen: Seen, writer: asyncio.StreamWriter, session: str) -> bool:
        params = seen.params
        given = params.get("arguments") or {}
        os.write(self.file, f"{given.get('nonce', '')}\n".encode())
        if params["name"] != "slow":
            return await super()._called(seen, writer, session)
        await asyncio.sleep(min(float(given.get("seconds", 0.5)), SLOW_MAX_S))
        writer.write(http(result(seen, self._done(text("It took a while.")))))
        return True


def sightings(*directories: Path) -> Counter[str]:
    """Nonces that reached these servers, and how often."""
    found: Counter[str] = Counter()
    for directory in directories:
        found.update((directory / FILE).read_text().split("\n")[:-1])
    return found


def main() -> None:
    """Until SIGTERM or SIGINT."""
    era, directory = sys.argv[1:]
    file = os.open(Path(directory) / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    server = Remembering(era, is_counting=False, file=file)
    for number in (signal.SIGTERM, signal.SIGINT):
        server.loop.add_signal_handler(number, server.loop.stop)
    server.loop.run_until_complete(server._start())
    print(json.dumps({"url": server.url}), flush=True)
    server.loop.run_forever()
    os.close(file)


if __name__ == "__main__":
    main()
