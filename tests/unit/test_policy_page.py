"""docs/policy.md keeps its word: its files are written, its commands typed, their output compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policy.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent


def typed(script: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env={**environment, "PATH": f"{BIN}:{environment.get('PATH', '')}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(not (BIN / "mcp-server-git").is_file(), reason="the page's servers are not installed")
def test_what_the_page_says_happens(tmp_path: Path) -> None:
    shown = None
    seen = set()
    blocks = BLOCK.findall(PAGE.read_text())
    for number, (language, text) in enumerate(blocks):
        seen.add(language)
        if language == "sh":
            shown = typed(text, tmp_path)
            follows = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
            fails = follows[0] == "text" and ".yaml:" in follows[1]
            assert shown.returncode == (1 if fails else 0), f"{text}\n{shown.stdout}\n{shown.stderr}"
        elif language == "text":
            assert shown is not None
            missing = [line for line in text.splitlines() if line not in shown.stdout]
            assert missing == [], shown.stdout
        else:
            name = text.partition("\n")[0].lstrip("#/ ")
            (tmp_path / name).write_text(text)
    assert seen == {"yaml", "sh", "text", "cedar"}
