"""`tidegate limits show`: what is used and left, asked of one process and of a policy service beside Redis."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.parts import commands
from tests.parts.asking import until
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.cluster import Service
from tests.parts.lab_policy import lab_bundle
from tests.parts.processes import free_port

LIMITS = """
v: 1
limits:
  - {id: pace, per: [user, tool], calls: 60/hour, burst: 3}
  - {id: budget, per: tenant, daily: {calls: 1000, cost: 5.00}, concurrent: 3}
prices: [{per_call: 0.5}]
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("limits")
    files = {path: content.decode() for path, content in lab_bundle().files.items()}
    for path, content in {**files, "limits.yaml": LIMITS}.items():
        file = directory / "policy" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    with running_upstream(directory) as server:
        listen = f"127.0.0.1:{free_port()}"
        config = {"listen": listen, "data": "all", "policy": "policy", "servers": {"up": {"url": server["url"]}}}
        (directory / "all.yaml").write_text(yaml.safe_dump(config))
        service = Service("up", "up", directory / "all.yaml", f"http://{listen}")
        try:
            service.start()
            yield service
        finally:
            service.stop()


def tidegate(up: Service, *words: str) -> subprocess.CompletedProcess[str]:
    return commands.tidegate(*words, "--config", str(up.config), cwd=up.config.parent)


def shown(up: Service, *words: str) -> list[dict[str, Any]]:
    told = tidegate(up, "limits", "show", "--json", *words)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["whole"] is True
    return list(found["counters"])


def _used(up: Service) -> dict[tuple[str, str], int]:
    found = {(one["limit"], one["measure"]): one["used"] for one in shown(up)}
    assert found.pop(("budget", "concurrent"), 0) <= 3
    return found


def test_what_calls_have_used_is_shown_by_counter_and_refused_calls_use_nothing(up: Service) -> None:
    assert "Nothing of any such limit is used" in tidegate(up, "limits", "show").stdout
    told = [tidegate(up, "call", "up__echo", "text=x", "--groups", "eng") for _ in range(4)]
    assert [one.returncode for one in told] == [0] * 3 + [1]
    assert "60 calls per hour" in told[-1].stdout + told[-1].stderr
    expected = {("pace", "calls"): 3, ("budget", "daily-calls"): 3, ("budget", "daily-cost"): 1_500_000}
    until(lambda: _used(up) == expected, "the edge has told what was used of its leases", 20)
    (pace,) = shown(up, "--limit", "pace", "--tool", "up/echo")
    assert pace["left"] == 0
    now_us = time.time() * 1e6
    assert 0 < pace["next_us"] - now_us <= 60e6, "one call a minute: of three, the next passes first"
    assert pace["renewed_us"] - pace["next_us"] >= 119e6
    assert [one["next_us"] for one in shown(up, "--limit", "budget")] == [0] * len(shown(up, "--limit", "budget"))
    assert set(pace["per"]) == {"user", "tool"}
    assert [one["limit"] for one in shown(up, "--user", pace["per"]["user"])] == ["pace"]
    assert shown(up, "--tool", "up/other") == []
    table = tidegate(up, "limits", "show").stdout
    assert "pace" in table
    assert "of 5.0000" in table
    assert table.splitlines()[0].split()[-2:] == ["next", "full"]
    (line,) = [" ".join(line.split()) for line in table.splitlines() if line.startswith("pace")]
    assert re.search(r" 3 of 3 0 in \d+ s in (\d+ s|\d+ min)$", line), line
    named = "user alice@example.com"
    until(lambda: named in tidegate(up, "limits", "show").stdout, "people are told by their logins", 20)


def test_check_tells_of_a_slip_in_limits(up: Service, tmp_path: Path) -> None:
    for path, content in lab_bundle().files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "limits.yaml").write_text("v: 1\nlimits:\n- {id: a, per: user, cals: 1/minute}\n")
    told = tidegate(up, "bundle", "check", str(tmp_path))
    assert told.returncode == 1
    assert "did you mean 'calls'?" in told.stdout + told.stderr
