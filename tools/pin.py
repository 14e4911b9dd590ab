"""Resolves the newest versions that pyproject.toml allows and writes them back as its pins: `make lock`.

The lock file itself stays out of the repository, because it would fix download addresses; the pins fix versions, so
that `uv sync` on any machine resolves the same ones from the index that it is configured for.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PINS = re.compile(r"(?<=\nconstraint-dependencies = \[\n).*?(?=\]\n)", re.DOTALL)


def without_pins(text: str) -> str:
    """The project file with an empty list of pins."""
    if not PINS.search(text):
        sys.exit("pyproject.toml: [tool.uv] has no list `constraint-dependencies` on lines of its own")
    return PINS.sub("", text, count=1)


def with_pins(text: str, pins: list[str]) -> str:
    """The project file with these pins, a line each."""
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    return PINS.sub(lambda _: lines, text, count=1)


def resolved(uv: str, text: str) -> list[str]:
    """name==version of all that the project file resolves to, on every platform and Python, sorted.

    One version each: where a newer one needs a newer Python than ours, the older one serves all.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(text)
        command = [uv, "lock", "--project", directory, "--fork-strategy", "fewest"]
        subprocess.run(command, check=True)
        packages = tomllib.loads(Path(directory, "uv.lock").read_text())["package"]
    own = tomllib.loads(text)["project"]["name"]
    return sorted(f"{package['name']}=={package['version']}" for package in packages if package["name"] != own)


def main() -> None:
    """Rewrite the pins. The first argument is the path of uv."""
    text = without_pins(PROJECT.read_text())
    pins = resolved(sys.argv[1], text)
    PROJECT.write_text(with_pins(text, pins))
    print(f"{len(pins)} versions pinned; look at them with: git diff pyproject.toml")


if __name__ == "__main__":
    main()
