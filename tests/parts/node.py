"""Node 22 and the npm packages that tests use: the official conformance suites and the TypeScript SDKs of both
generations, in versions that tests/conformance/package.json pins.

Made once under .cache/ with the npm that the machine has; offline afterwards. Counterparts: tests/conformance,
clients/ts*.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.parts.processes import CACHE, PartMissing

PACKAGE: Final = Path(__file__).resolve().parents[1] / "conformance" / "package.json"
INSTALL_TIMEOUT_S: Final = 600
_HINT: Final = (
    "the conformance suite and the TypeScript SDKs need npm; install: apt-get install -y --no-install-recommends npm"
)


def home() -> Path:
    """The directory that holds `package.json` and `node_modules`; scripts that import npm packages must lie below it
    (`beside` puts them there). Raises PartMissing with npm's words.
    """
    found = CACHE / f"node-{hashlib.sha256(PACKAGE.read_bytes()).hexdigest()[:12]}"
    if not found.is_dir():
        npm = _npm()
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="node-making-") as staging:
            made = Path(staging) / "made"
            _install(npm, made)
            with contextlib.suppress(OSError):  # another run was faster: its directory is as good
                made.rename(found)
    return found


def node() -> Path:
    """Node 22's executable."""
    return home() / "node_modules" / "node" / "bin" / "node"


def modules() -> Path:
    """The `node_modules` of `home`."""
    return home() / "node_modules"


def beside(script: Path, *imported: Path) -> Path:
    """A copy of `script`, and of the local files that it imports by name, below `home`, where their imports of packages
    resolve. The copy's directory is named by its content: a run never meets half of another's.
    """
    files = {path.name: path.read_bytes() for path in (script, *imported)}
    content = b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))
    copy = home() / "scripts" / f"{script.stem}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not copy.is_dir():
        copy.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".making-") as staging:
            made = Path(staging) / "made"
            made.mkdir()
            for name, text in files.items():
                (made / name).write_bytes(text)
            with contextlib.suppress(OSError):  # another run was faster: its copy is the same
                made.rename(copy)
    return copy / script.name


def _install(npm: str, made: Path) -> None:
    made.mkdir()
    shutil.copy(PACKAGE, made / "package.json")
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--no-progress", "--loglevel", "error"]
    print(f"installing {PACKAGE.name}'s packages with npm, once", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise PartMissing(f"`{' '.join(command)}` in {made} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    binary = made / "node_modules" / "node" / "bin" / "node"
    if not os.access(binary, os.X_OK):
        raise PartMissing(
            f"npm installed no {binary.relative_to(made)}: are install scripts switched off? {done.stderr[-1000:]}"
        )


def _npm() -> str:
    found = shutil.which("npm")
    if found is not None:
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PartMissing(_HINT)
    print("installing npm with apt-get", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "install", "-y", "--no-install-recommends", "npm"]):
        if subprocess.run(command, env=environment, stdout=sys.stderr, timeout=900, check=False).returncode != 0:
            raise PartMissing(f"`{' '.join(command)}` failed. {_HINT}")
    return shutil.which("npm") or "npm"


if __name__ == "__main__":
    print(node())
