"""`tidegate rebuild`: the whole of ClickHouse anew from the log."""

from typing import Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption, names_of

PANEL = "Audit"


def add_to(app: typer.Typer) -> None:
    app.command("rebuild", rich_help_panel=PANEL)(rebuild)


def rebuild(
    only: Annotated[
        list[str],
        typer.Option(
            "--only", metavar="TABLES", help="Of events, calls, findings, integrity and rollups; default: all of them."
        ),
    ] = [],  # noqa: B006
    keep: Annotated[
        bool, typer.Option("--keep", help="Take from ClickHouse itself what the log no longer has, and keep it.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on although the log no longer has all that ClickHouse holds.")
    ] = False,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Verify against the roots at the end.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Build ClickHouse anew from the log, beside what is there, and exchange it once it is complete.

    Services may go on, and queries find rows all the while. Killed anywhere, the same command goes on where it was.
    Exit code 1 where the result is not what the log says.
    """
    from tidegate_cli.rebuild_work import Wishes, show_rebuild

    wishes = Wishes(names_of(only), keep=keep, accept_loss=accept_loss, check=check, yes=yes)
    raise typer.Exit(show_rebuild(config, wishes, as_json=as_json))
