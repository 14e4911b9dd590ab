"""Reads the deployment files as data. Counterparts: infra/compose, infra/docker; used by the tests beside it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "infra" / "compose"
SERVICES = ("edge", "policy", "audit-consumer", "detector")


def compose() -> dict[str, Any]:
    """compose.yaml, anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return loaded


def built() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml that run our own code."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def variables(text: str) -> tuple[set[str], set[str]]:
    """(${NAME} without a default, ${NAME:-default}) in a text."""
    found = re.findall(r"\$\{([A-Z_]+)(:?[-?])?", text)
    return {name for name, kind in found if "-" not in kind}, {name for name, kind in found if "-" in kind}


def environment_file(path: Path) -> dict[str, str]:
    """NAME=value lines."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line)


@dataclass(frozen=True)
class Dockerfile:
    """Its instructions, joined over line ends."""

    path: Path
    steps: tuple[tuple[str, str], ...]

    def all(self, keyword: str) -> list[str]:
        return [rest for word, rest in self.steps if word == keyword]

    def copied(self) -> list[str]:
        """Sources copied from the repository."""
        return [source for rest in self.all("COPY") if "--from=" not in rest for source in shlex.split(rest)[:-1]]


def dockerfile(service: str) -> Dockerfile:
    """The Dockerfile of a service."""
    path = ROOT / "infra" / "docker" / f"{service}.Dockerfile"
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return Dockerfile(path, tuple((line.partition(" ")[0], line.partition(" ")[2]) for line in lines))
