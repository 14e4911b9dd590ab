"""`tidegate up`: everything in one process with embedded adapters, and what it keeps over restarts and a kill -9."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from tests.parts.asking import children_of, get, is_alive, until
from tests.parts.books import HISTORIES, check_chains, clickhouse_rows
from tests.parts.clients.driving import sdk_client
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import reached, running_load
from tests.parts.cluster import TIDEGATE, Service
from tests.parts.lab_policy import lab_bundle
from tests.parts.processes import free_port

from tidegate.log.sqlite import open_readonly
from tidegate_cli.options import SERVING_FILE

TIME = {"time/get_current_time": "{ timezone: String }"}


class Up:
    """The process, and what it keeps."""

    def __init__(self, directory: Path, seen: str, service: Service) -> None:
        self.directory = directory
        self.service = service
        self._seen = seen

    def token(self) -> str:
        command = [str(TIDEGATE), "token", "--config", str(self.service.config)]
        who = ["--user", "alice@example.com", "--agent", "lab", "--groups", "eng"]
        return subprocess.run([*command, *who], check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return clickhouse_rows(self.service.data, sql)

    def sightings(self) -> list[str]:
        return [nonce for nonce, _ in msgspec.json.decode(get(self._seen)[1])["calls"]]

    async def log(self) -> list[bytes]:
        """Every chained record, read beside the owner."""
        log = open_readonly(self.service.data / "log.db")
        subscription = await log.follow(HISTORIES)
        values: list[bytes] = []
        while not subscription.caught_up:
            values += [record.value for record in await subscription.poll(1_000, 0.1) if record.value is not None]
        await subscription.close()
        await log.close()
        return values


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    directory = tmp_path_factory.mktemp("up")
    for path, content in lab_bundle(more=TIME).files.items():
        file = directory / "policy" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with running_upstream(directory, "--delay-ms", "20") as up:
        listen = f"127.0.0.1:{free_port()}"
        config = {
            "listen": listen,
            "data": "all",
            "policy": "policy",
            "servers": {
                "up": {"url": up["url"]},
                "time": {"command": ["mcp-server-time", "--local-timezone", "Etc/UTC"]},
            },
        }
        (directory / "all.yaml").write_text(yaml.safe_dump(config))
        service = Service("up", "up", directory / "all.yaml", f"http://{listen}")
        try:
            service.start()
            yield Up(directory, up["seen"], service)
        finally:
            service.stop()


@pytest.fixture
def up(running: Up) -> Iterator[Up]:
    running.service.news()
    yield running
    print(running.service.news())


def test_one_process_serves_health_readiness_metrics_and_tools(up: Up) -> None:
    base = up.service.base
    assert msgspec.json.decode(get(f"{base}/healthz")[1])["status"] == "ok"
    status, ready = get(f"{base}/readyz")
    assert (status, msgspec.json.decode(ready)) == (200, {"ready": True, "awaiting": {}, "degraded": {}})
    assert up.service.metric("tidegate_bundle_release") == 1
    with sdk_client("auto", f"{base}/mcp", up.token()) as client:
        assert client.do("list") == ["time__get_current_time", "up__echo"]
        assert not client.call("time__get_current_time", timezone="Etc/UTC").get("isError")
        assert not client.call("up__echo", text="hello", path="/srv/a", nonce="first").get("isError")
        assert client.call("up__echo", text="hello", path="/etc/passwd", nonce="second")["isError"]
    seen = until(lambda: len(up.rows("SELECT call_id FROM tidegate.calls")) == 3, "three calls are rows")
    print(f"rows in the view after {seen:.2f} s")
    calls = up.rows("SELECT server, target, status, rules FROM tidegate.calls ORDER BY requested_at")
    assert [(row["server"], row["target"], row["status"], row["rules"]) for row in calls] == [
        ("time", "get_current_time", "ok", ["eng-echo"]),
        ("up", "echo", "ok", ["eng-echo"]),
        ("up", "echo", "denied", ["only-below"]),
    ]
    assert up.sightings() == ["first"]


def test_a_second_process_on_the_same_data_is_refused_and_told_by_whom(up: Up) -> None:
    config = yaml.safe_load(up.service.config.read_text()) | {"listen": f"127.0.0.1:{free_port()}"}
    twin = Service("twin", "up", up.directory / "twin.yaml", f"http://{config['listen']}")
    twin.config.write_text(yaml.safe_dump(config))
    address = up.service.data / SERVING_FILE
    before = address.read_bytes()
    twin.launch()
    status = twin.wait_gone()
    said = twin.news()
    assert status not in (0, -signal.SIGKILL)
    assert f"process {up.service.pid}" in said
    assert "Traceback" not in said
    assert up.service.is_ready()
    assert address.read_bytes() == before, "commands still find the one that runs"
    assert msgspec.json.decode(before)["pid"] == up.service.pid


async def test_killed_under_load_it_loses_nothing_and_continues(up: Up) -> None:
    token = up.token()
    async with running_load([token], [up.service.base], name="crash", calls_max=4_000) as load:
        await reached(load, 150)
        helpers = children_of(up.service.pid)
        up.service.kill()
        until(lambda: not any(map(is_alive, helpers)), "its helpers ended with it")
        up.service.launch()
        await asyncio.to_thread(up.service.wait_ready)
        await reached(load, 50)
    assert helpers, "the stdio server was a process of its own"
    sightings = up.sightings()
    assert len(sightings) == len(set(sightings))
    mine = {nonce for nonce in sightings if nonce in load.answered}
    requested = "SELECT call_id, status, arguments FROM tidegate.calls WHERE decision = 'allow' AND server = 'up'"

    def recorded() -> dict[str, str]:
        return {msgspec.json.decode(row["arguments"]).get("nonce", ""): row["status"] for row in up.rows(requested)}

    await asyncio.to_thread(until, lambda: mine <= set(recorded()), "every call that the upstream saw is a row")
    await asyncio.to_thread(
        until, lambda: sum(s == "ok" for n, s in recorded().items() if n in mine) >= load.done, "completions are there"
    )
    rows = recorded()
    for nonce, told in load.answered.items():
        if told.is_ok:
            assert rows[nonce] == "ok", nonce
    assert {status for nonce, status in rows.items() if nonce in load.answered} <= {"ok", "unknown"}
    assert rows["first"] == "ok", "what was there before is there still"
    chains = check_chains(await up.log())
    assert chains.writers >= 2, "each start is a writer of its own"
    for table, key in (("tidegate.events", "event_id"), ("tidegate.calls", "call_id")):
        (row,) = up.rows(f"SELECT count() AS n, uniqExact({key}) AS distinct FROM {table}")
        assert row["n"] == row["distinct"], (table, row)


def test_told_to_end_it_ends_well_leaves_no_process_and_continues_with_its_data(up: Up) -> None:
    family = [up.service.pid, *children_of(up.service.pid)]
    before = {row["call_id"] for row in up.rows("SELECT call_id FROM tidegate.calls")}
    up.service.terminate()
    assert up.service.wait_gone() == 0
    until(lambda: not any(map(is_alive, family)), "no process is left")
    up.service.start()
    assert {row["call_id"] for row in up.rows("SELECT call_id FROM tidegate.calls")} == before
    assert up.service.metric("tidegate_bundle_release") == 1, "the same policy is not released again"
    assert os.stat(up.service.data / "secrets.json").st_mode & 0o077 == 0
