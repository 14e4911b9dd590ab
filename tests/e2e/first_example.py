"""An example, the first by default, copied to a directory of its own and served by the real command: for the tests
beside this file.

Rule: a port of its own, a data directory of its own, stopped by SIGTERM at the end.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.parts import warm
from tests.parts.commands import tidegate
from tests.parts.processes import Process, free_port, spawn, stop, wait_ready

from tidegate_cli.demo import prepare_repository

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = Path("examples") / "01-first-call"
TIDEGATE = Path(sys.executable).with_name("tidegate")
READY_S = 60.0


@dataclass
class House:
    """A copy of the examples below `root`; `config`, of one of them, starts from there, as in the documentation."""

    root: Path
    port: int
    notes_port: int
    example: Path = EXAMPLE
    process: Process | None = None

    @property
    def config(self) -> str:
        return str(self.example / "tidegate.yaml")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.root / "tidegate.log"

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTES_PORT": str(self.notes_port), "TIDEGATE_CONFIG": self.config, "COLUMNS": "200"}

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """`tidegate WORDS` in the house, with its configuration; in this process, which spares a start of Python."""
        return tidegate(*words, cwd=self.root, environment={**self.environment, **(environment or {})})

    def run_apart(self, *words: str, stdin: int | None = None) -> "subprocess.CompletedProcess[str]":
        """The same in a process of its own: for what reads a terminal or opens ClickHouse itself."""
        return subprocess.run(
            [str(TIDEGATE), *words],
            cwd=self.root,
            env={**os.environ, **self.environment},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *words: str, is_cold: bool = False) -> Process:
        """`tidegate WORDS --config … --listen …`, not waited for. `is_cold`: with the start of Python, as people do."""
        command = [str(TIDEGATE), *words, "--config", self.config, "--listen", f"127.0.0.1:{self.port}"]
        begin = spawn if is_cold else warm.start
        self.process = begin(command, cwd=self.root, log=self.log, environment=self.environment)
        return self.process

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def new_house(root: Path, example: Path = EXAMPLE) -> House:
    """The documentation's paths hold in it: examples/…, .venv/bin."""
    (root / ".venv").symlink_to(Path(sys.executable).parents[1])
    shutil.copytree(ROOT / "examples", root / "examples", ignore=shutil.ignore_patterns("data", "__pycache__"))
    return House(root, free_port(), free_port(), example)


@contextlib.contextmanager
def serving(root: Path, edit: Callable[[str], str] = str) -> Iterator[House]:
    """`tidegate up` on the copy, ready, with its notes server and the demo's repository. `edit`: of the settings."""
    house = new_house(root)
    config = house.root / house.config
    config.write_text(edit(config.read_text()))
    prepare_repository(house.root / EXAMPLE / "data" / "shop")
    notes = spawn(
        [sys.executable, str(EXAMPLE / "notes_server.py")],
        cwd=house.root,
        log=house.root / "notes.log",
        environment=house.environment,
    )
    try:
        process = house.start("up")
        wait_ready(house.is_ready, process, house.log, deadline_s=READY_S)
        yield house
    finally:
        if house.process is not None:
            stop(house.process, 30.0)
        stop(notes)


@contextlib.contextmanager
def serving_example(root: Path, example: str) -> Iterator[House]:
    """`tidegate up` on one whose servers are all started by it, ready."""
    house = new_house(root, Path("examples") / example)
    process = house.start("up")
    try:
        wait_ready(house.is_ready, process, house.log, deadline_s=READY_S)
        yield house
    finally:
        stop(process, 30.0)
