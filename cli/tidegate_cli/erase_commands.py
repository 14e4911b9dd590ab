"""`tidegate erase`: a person's recorded fields can never be read again."""

from typing import Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.release_commands import TokenOption

PANEL = "Trust"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(erase)


def erase(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT", help="A subject id, a login that calls were recorded under, or 'issuer|subject'."
        ),
    ],
    reason: Annotated[
        str, typer.Option("--reason", help="Recorded for good: name nobody in it.", show_default="needed to erase")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be destroyed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Destroy the keys of a person: login, arguments and results recorded so far can never be read again, by anybody.

    No record is changed, so the hash chains and `tidegate verify` still hold. Calls from now on are recorded under a
    new key. Exit code 1 where something personal is still readable, because it was recorded in clear.
    """
    from tidegate_cli.erasing import erase_subject

    raise typer.Exit(erase_subject(config, subject, reason, dry_run=dry_run, yes=yes, token=token, as_json=as_json))
