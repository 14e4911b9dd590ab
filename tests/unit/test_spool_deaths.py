"""Killed at any step on the disk, a spool and its shipper lose nothing that was promised, and keep the order."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")  # killing a process loses no page: syncing is not what is tested here


def test_killed_before_or_after_every_step_each_promised_record_arrives_in_order() -> None:
    place = str(MEMORY) if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="tidegate-spool-", dir=place) as directory:
        done = subprocess.run(
            [sys.executable, "-m", "tests.parts.dying_spool", directory],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["wrong"] == {}, done.stderr[-2_000:]
    assert told["steps"] > 100, "the steps of opening, appending, shipping and deleting segments"
