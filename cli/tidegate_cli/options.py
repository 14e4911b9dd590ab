"""Options that several commands share, and the settings that they lead to.

A running `up` leaves its address in {data}/serving.json: `--listen` may have moved it from what the file says, and
tokens name the address. Written by `running.py` once that process owns the data directory, obeyed here while it lives.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

if TYPE_CHECKING:
    from tidegate.settings import Settings

SERVING_FILE = "serving.json"

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="TIDEGATE_CONFIG", metavar="FILE", help="The configuration file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
CONFIG_DEFAULT = Path("tidegate.yaml")


class Serving(msgspec.Struct, frozen=True):
    """Where the process that owns a data directory listens."""

    listen: str
    pid: int


def live_settings(config: Path) -> "Settings":
    """The file's settings, at the address where `up` serves them now, if it does. Raises ConfigFault."""
    from tidegate.settings_file import load_settings

    settings = load_settings(config)
    serving = read_serving(settings) if settings.is_local else None
    if serving is None or serving.listen == settings.listen:
        return settings
    return load_settings(config, listen=serving.listen)


def read_serving(settings: "Settings") -> Serving | None:
    """The running process; None where none runs, or none that said so."""
    try:
        serving = msgspec.json.decode((settings.data_dir / SERVING_FILE).read_bytes(), type=Serving)
    except (OSError, msgspec.DecodeError):
        return None
    return serving if _lives(serving.pid) else None


def make_data_dir(settings: "Settings") -> None:
    """Where records and keys are kept is its owner's alone; a directory that is there already keeps its mode."""
    settings.data_dir.parent.mkdir(parents=True, exist_ok=True)
    settings.data_dir.mkdir(mode=0o700, exist_ok=True)


def write_serving(settings: "Settings") -> None:
    make_data_dir(settings)
    file = settings.data_dir / SERVING_FILE
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(Serving(settings.listen, os.getpid())))
    draft.replace(file)


def names_of(listed: list[str]) -> tuple[str, ...]:
    """`--groups eng,oncall --groups sales` as ("eng", "oncall", "sales")."""
    parts = (name.strip() for given in listed for name in given.split(","))
    return tuple(dict.fromkeys(name for name in parts if name))


def labels_of(listed: list[str]) -> dict[str, str]:
    """`--edge-label site=lab` as {"site": "lab"}. Raises ConfigFault."""
    from tidegate.errors import ConfigFault

    for label in listed:
        if label.find("=") < 1:
            raise ConfigFault(f"--edge-label {label}: say key=value, as in `edge.labels`")
    return {name: value for name, _, value in (label.partition("=") for label in listed)}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
