"""The work of `tidegate bundle init`: a directory with a working policy for the servers of the configuration."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tidegate.errors import ConfigFault, UpstreamFault
from tidegate.policy.bundle import SCHEMA, load_bundle
from tidegate.policy.check import check_bundle
from tidegate.policy.schema_writing import Offer, write_schema
from tidegate.policy.starting import first_bundle, reads
from tidegate.settings_file import load_settings
from tidegate_cli.offering import ask_servers
from tidegate_cli.output import plain, print_document, say


def start_bundle(directory: Path, config: Path, team: str, schema_only: bool, as_json: bool) -> int:
    """The exit code: 1 where the bundle has a fatal problem. Raises Fault where nothing was written."""
    _room_for(directory, schema_only)
    if not team.strip() or len(team) > 200 or not team.isprintable():
        raise ConfigFault("--team takes a group's name of 1 to 200 characters, as it stands in people's tokens")
    with _directory(directory):  # the configuration may name it as its policy already
        offers, missing = ask_servers(load_settings(config))
        if missing and (schema_only or not offers):
            name, why = next(iter(missing.items()))
            raise UpstreamFault(f"{name} could not be asked for its tools: {why}; nothing was written", sent=False)
    if schema_only:
        before = (directory / SCHEMA).read_text() if (directory / SCHEMA).exists() else ""
        files = {SCHEMA: write_schema(offers, before)}
    else:
        files = first_bundle(offers, team, directory.resolve().name)
    for path, text in files.items():
        _write(directory / path, text)
    problems = check_bundle(load_bundle(directory))
    fatal = any(problem.fatal for problem in problems)
    if as_json:
        shown = {"directory": str(directory), "files": sorted(files), "servers": _counts(offers), "missing": missing}
        print_document({**shown, "releasable": not fatal, "problems": [problem._asdict() for problem in problems]})
        return int(fatal)
    _tell(directory, files, offers, missing, team)
    for problem in problems:
        say(f"[{'red' if problem.fatal else 'yellow'}]look at[/]  {plain(problem)}")
    return int(fatal)


@contextlib.contextmanager
def _directory(directory: Path) -> Iterator[None]:
    """It is there; where nothing comes of it, it is gone again."""
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            directory.rmdir()
        raise


def _room_for(directory: Path, schema_only: bool) -> None:
    if schema_only and not directory.is_dir():
        raise ConfigFault(f"{directory} is not a bundle's directory; leave out --schema-only to begin one")
    if not schema_only and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigFault(f"{directory} is not empty; name a new directory, or --schema-only to renew its schema alone")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def _counts(offers: list[Offer]) -> dict[str, int]:
    return {offer.server: len(offer.tools) for offer in offers}


def _tell(directory: Path, files: dict[str, str], offers: list[Offer], missing: dict[str, str], team: str) -> None:
    for offer in offers:
        granted = sum(reads(tool) for tool in offer.tools)
        only = "" if SCHEMA in files and len(files) == 1 else f", {granted} granted to {plain(team)}: they only read"
        say(f"[cyan]{plain(offer.server)}[/]  {len(offer.tools)} tool{'s' if len(offer.tools) != 1 else ''}{only}")
    for name, why in missing.items():
        say(f"[yellow]left out[/]  {plain(name)}: {plain(why)}")
    say(f"[green]written[/]  {', '.join(plain(directory / path) for path in sorted(files))}")
    if len(files) > 1:
        say(f"next: edit {plain(directory / 'grants.yaml')}, then `tidegate bundle check {plain(directory)}`")
        say("[dim]a bundle may also have limits.yaml (how much) and definitions.yaml (tools that change)[/]")
