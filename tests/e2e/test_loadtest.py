"""The load test itself: it passes where its thresholds hold, and fails with the threshold's name where one breaks."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from tests.parts.edge import BLOCKED, running_edge
from tests.parts.scripted import scripted

from tidegate.events import CallRequested

LOCUST = Path(sys.executable).with_name("locust")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("p95_ms", "status"), [("5000", 0), ("0.001", 2)])
async def test_agents_of_both_eras_load_the_gateway_and_a_broken_threshold_fails(
    tmp_path: Path, p95_ms: str, status: int
) -> None:
    async with scripted() as up, running_edge(tmp_path, {"up": {"url": up.url}}) as edge:
        command = [
            *(str(LOCUST), "-f", "loadtests/locustfile.py", "--headless", "--only-summary"),
            *("--host", f"http://{edge.place.listen}", "-u", "4", "-r", "4", "-t", "4s", "--p95-ms", p95_ms),
            *("--tool", "up__echo", "--arguments", json.dumps({"text": "x"})),
            *("--denied-arguments", json.dumps({"text": BLOCKED})),
        ]
        environment = {**os.environ, "TIDEGATE_TOKEN": edge.place.token()}
        locust = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(60):
            said, _ = await locust.communicate()
        assert locust.returncode == status, said.decode()
        requests = [event for event in await edge.place.events() if isinstance(event, CallRequested)]
        assert {event.protocol for event in requests} == {"2025-11-25", "2026-07-28"}
        assert {event.decision for event in requests} == {"allow", "deny"}
        assert len(up.calls("echo")) == sum(event.decision == "allow" for event in requests)
