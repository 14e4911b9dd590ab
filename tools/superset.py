"""Imports the Superset dashboards into a real Superset and asks every chart of it, over a day whose answers are known.

`python -m tools.superset --check` sets Superset up under `.cache/superset` (once: about a minute and 850 MB), starts it
on loopback with a database of its own, starts the embedded engine with that day, imports the packed export over
Superset's API with the account that only reads, and fails when a chart answers an error, no rows, or other rows than
the chart's query in plain SQL. `--pack FILE` only writes the zip. Counterpart: `superset_export.py`.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tests.parts.known_day import live_through
from tests.parts.processes import free_port, spawn, stop, wait_ready
from tools.superset_client import ADMIN, SupersetClient, is_healthy
from tools.superset_export import FOLDER, Export, Yaml, pack, read_export, sql_of

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader
from tidegate.ids import now_us
from tidegate.settings import Settings
from tidegate_audit_consumer.migrate import migrate

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".cache" / "superset"
PINS: Final = ROOT / "tools" / "superset.txt"
READY_S: Final = 120
STEP_S: Final = 300
SESSION: Final = "s1"  # of the known day, for the dashboard that shows one session

CONFIG: Final = """\
import os
SECRET_KEY = os.environ["SUPERSET_SECRET_KEY"]
SQLALCHEMY_DATABASE_URI = "sqlite:///" + os.environ["SUPERSET_HOME"] + "/superset.db"
WTF_CSRF_ENABLED = False  # asked over its API alone, on loopback
TALISMAN_ENABLED = False
RATELIMIT_ENABLED = False
"""


class Checked(NamedTuple):
    """One chart: what Superset answered, and how many rows plain SQL gives."""

    dashboard: str
    chart: str
    rows: int
    expected: int
    error: str

    @property
    def is_right(self) -> bool:
        return not self.error and 0 < self.rows == self.expected


def ensure_installed(console: Console) -> Path:
    """The virtual environment, made anew when the pins have changed. Raises CalledProcessError."""
    place, stamp = CACHE / "venv", CACHE / "venv" / "pins.txt"
    if stamp.exists() and stamp.read_bytes() == PINS.read_bytes():
        return place
    console.print(f"setting Superset up in {place.relative_to(ROOT)}: about a minute, 850 MB")
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(PINS)], check=True, timeout=3 * STEP_S)
    stamp.write_bytes(PINS.read_bytes())
    return place


@contextlib.contextmanager
def running_superset(place: Path, home: Path, console: Console) -> Iterator[SupersetClient]:
    """A fresh Superset on a free port of loopback, signed in to as its administrator; gone on exit."""
    (home / "superset_config.py").write_text(CONFIG)
    password = secrets.token_urlsafe(24)
    own = {
        "SUPERSET_HOME": str(home),
        "SUPERSET_CONFIG_PATH": str(home / "superset_config.py"),
        "SUPERSET_SECRET_KEY": secrets.token_urlsafe(48),
        "FLASK_APP": "superset",
        "TZ": "UTC",  # relative times and ClickHouse's must mean the same
    }
    environment = {**os.environ, **own}
    command = str(place / "bin" / "superset")
    name = ["--username", ADMIN, "--firstname", "a", "--lastname", "b", "--email", "admin@localhost"]
    steps = (["db", "upgrade"], ["fab", "create-admin", *name, "--password", password], ["init"])
    for step in steps:
        console.print(f"superset {' '.join(step[:2])}", style="dim")
        _run([command, *step], environment)
    port = free_port()
    log = home / "superset.log"
    serving = spawn([command, "run", "--host", "127.0.0.1", "--port", str(port)], cwd=home, log=log, environment=own)
    try:
        wait_ready(lambda: is_healthy(port), serving, log, deadline_s=READY_S)
        yield SupersetClient.sign_in(port, password)
    except RuntimeError as fault:
        words = log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{fault}\nSuperset's last words:\n{words}") from fault
    finally:
        stop(serving)


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Raises RuntimeError with the end of what it said."""
    done = subprocess.run(command, env=environment, capture_output=True, timeout=STEP_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command[:3])}` failed: {done.stderr.decode(errors='replace')[-2000:]}")


@contextlib.asynccontextmanager
async def known_engine(data: Path) -> AsyncIterator[tuple[EmbeddedEngine, ClickHouseAnalytics]]:
    """The embedded engine with the known day, and a reader over its HTTP interface."""
    async with EmbeddedEngine(data) as engine:
        await migrate(engine.analytics)
        await live_through(engine.analytics, now_us())
        reader = open_reader(Settings(root=str(data), data="."))
        try:
            yield engine, reader
        finally:
            await reader.close()


def check(export: Export, console: Console) -> list[Checked]:
    place = ensure_installed(console)
    with tempfile.TemporaryDirectory(prefix="tidegate-superset-") as directory:
        home, data = Path(directory, "home"), Path(directory, "data")
        home.mkdir()
        with running_superset(place, home, console) as superset:
            return asyncio.run(_import_and_ask(export, superset, data))


async def _import_and_ask(export: Export, superset: SupersetClient, data: Path) -> list[Checked]:
    async with known_engine(data) as (engine, reader):
        token = (data / engine.address.reader_token_file).read_text().strip()
        packed = pack(export, f"{engine.address.host}:{engine.address.port}", "reader")
        await asyncio.to_thread(superset.import_dashboards, packed, token)
        return await _ask_everything(export, superset, reader)


async def _ask_everything(export: Export, superset: SupersetClient, reader: ClickHouseAnalytics) -> list[Checked]:
    checked = []
    for slug, dashboard in export.dashboards.items():
        numbers = await asyncio.to_thread(superset.charts_of, slug)
        for chart in export.charts_of(dashboard):
            dataset = export.dataset_of(chart)
            one = await _ask(chart, dataset, numbers.get(chart["slice_name"], 0), superset, reader)
            checked.append(one._replace(dashboard=slug))
            if slug == "tidegate-session":
                one = await _ask_session(chart, dataset, superset, reader)
                checked.append(one._replace(dashboard=f"{slug} ({SESSION})"))
    return checked


async def _ask(
    chart: Yaml, dataset: Yaml, number: int, superset: SupersetClient, reader: ClickHouseAnalytics
) -> Checked:
    """As saved."""
    rows, error = await asyncio.to_thread(superset.data_of, number)
    return Checked("", chart["slice_name"], rows, await _expected(chart, dataset, reader), error)


async def _ask_session(chart: Yaml, dataset: Yaml, superset: SupersetClient, reader: ClickHouseAnalytics) -> Checked:
    """As the dashboard does once a session is chosen."""
    rows, error = await asyncio.to_thread(superset.data_with, chart, dataset, ("session_id", SESSION))
    expected = await _expected(chart, dataset, reader, f"session_id = '{SESSION}'")
    return Checked("", chart["slice_name"], rows, expected, error)


async def _expected(chart: Yaml, dataset: Yaml, reader: ClickHouseAnalytics, *also: str) -> int:
    sql = sql_of(chart, dataset, "now() - INTERVAL 1 DAY", "now()", also)
    return len((await reader.query(sql)).rows)


def show(console: Console, checked: list[Checked]) -> None:
    table = Table(title="Charts, as Superset answered", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("dashboard", "chart"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "by SQL"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    for one in checked:
        verdict = "[green]ok[/]" if one.is_right else "[red]wrong[/]"
        name = one.dashboard.removeprefix("tidegate-")
        table.add_row(name, one.chart, str(one.rows), str(one.expected), verdict)
    console.print(table)
    for one in checked:
        if one.error:
            console.print(f"{one.dashboard}: {one.chart}: {one.error}", style="red", markup=False, soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="import into a real Superset and ask every chart")
    what.add_argument("--pack", type=Path, metavar="FILE", help="write the zip that Superset imports")
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="of ClickHouse, into the zip")
    parser.add_argument(
        "--account", default="tidegate_dashboards", help="at ClickHouse; Superset asks for its password"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    console = Console()
    export = read_export(FOLDER)
    if options.pack:
        options.pack.write_bytes(pack(export, options.address, options.account))
        return 0
    started = time.monotonic()
    checked = check(export, console)
    show(console, checked)
    wrong = [one for one in checked if not one.is_right]
    took = time.monotonic() - started
    console.print(f"{len(export.charts)} charts, {len(checked)} questions, {len(wrong)} wrong; {took:.0f} s")
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
