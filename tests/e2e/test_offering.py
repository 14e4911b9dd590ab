"""`tidegate bundle init` where a server does not start: what it said, once."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidegate_cli import offering
from tidegate_cli.main import app


def test_a_server_that_does_not_start_is_told_of_once_by_whole_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "ASK_S", 3.0)
    fails = "import sys; sys.exit('RuntimeError: ' + 'cannot open the door, ' * 20)"
    server = {"command": [sys.executable, "-c", fails]}
    config = tmp_path / "tidegate.json"
    config.write_text(json.dumps({"data": "data", "tenant": "t", "servers": {"door": server}}))
    failed = CliRunner().invoke(app, ["bundle", "init", str(tmp_path / "first"), "-c", str(config)])
    told = str(failed.exception)
    assert told.count("RuntimeError") == 1
    assert re.search(r"its last words: RuntimeError: cannot .* (cannot|open|the|door,) …; nothing was written", told)
    said = capfd.readouterr()
    assert "RuntimeError" not in said.out + said.err
