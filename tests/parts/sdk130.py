"""The official SDK of the handshake era, `mcp==1.30.*`, in an environment of its own: it cannot live beside 2.x.

Made once under .cache/; counterparts: clients/sdk130_client.py (runs there), clients/sdk23_client.py (runs here).
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.parts.processes import CACHE, PartMissing

REQUIREMENT: Final = "mcp==1.30.*"
ENVIRONMENT: Final = CACHE / "mcp130"
INSTALL_TIMEOUT_S: Final = 300
_GET_UV: Final = Path(__file__).resolve().parents[2] / "tools" / "get-uv"


def python() -> Path:
    """The interpreter that imports mcp 1.30. Raises PartMissing with the installer's words."""
    found = ENVIRONMENT / "bin" / "python"
    if not found.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="mcp130-") as staging:
            made = Path(staging) / "env"
            uv = _run([str(_GET_UV)]).strip()
            _run([uv, "venv", "--python", sys.executable, "--relocatable", str(made)])
            _run([uv, "pip", "install", "--python", str(made / "bin" / "python"), REQUIREMENT])
            with contextlib.suppress(OSError):  # another run was faster: its environment is as good
                made.rename(ENVIRONMENT)
    return found


def _run(command: list[str]) -> str:
    elsewhere = tempfile.gettempdir()  # below the project uv would hold to its constraints, which name mcp 2
    done = subprocess.run(
        command, cwd=elsewhere, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise PartMissing(f"`{' '.join(command)}` failed: {done.stderr[-2000:]}")
    return done.stdout
