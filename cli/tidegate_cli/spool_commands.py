"""`tidegate spool`: what edges have not shipped yet, and shipping it for an edge that is dead. The work is in
`spooling.py`.
"""

from pathlib import Path
from typing import Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Of the spool, or the data directory.")]


def add_to(app: typer.Typer) -> None:
    spool = typer.Typer(help="See and ship what an edge has on its disk.", no_args_is_help=True)
    spool.command("list")(list_spools)
    spool.command("show")(show)
    spool.command("ship")(ship)
    app.add_typer(spool, name="spool", rich_help_panel="Audit")


def list_spools(
    root: Annotated[
        Path | None,
        typer.Argument(metavar="[ROOT]", help="Where to look, some levels deep; default: the data directory."),
    ] = None,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Every spool below a directory: what it holds that is not shipped, whose it is, and whether anybody uses it."""
    from tidegate_cli.spooling import show_list

    show_list(root, config, as_json=as_json)


def show(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """One spool: its segments, calls that never ended, what could not be read and where it is kept. Changes nothing."""
    from tidegate_cli.spooling import show_one

    show_one(directory, as_json=as_json)


def ship(
    directory: DirectoryArgument,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Ship a dead edge's spool to the log that the configuration names, and empty it.

    As that edge would at its next start: in order, calls without an end recorded as abandoned, what cannot be read set
    aside and reported. Refused while a process uses the directory. Killed anywhere, the same command goes on.
    """
    from tidegate_cli.spooling import ship_one

    ship_one(directory, config, as_json=as_json)
