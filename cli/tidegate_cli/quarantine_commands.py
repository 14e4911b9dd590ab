"""`tidegate quarantine`: what the edges refuse, whatever the rules say."""

from typing import Annotated

import typer

from tidegate_cli.bundle_commands import PANEL
from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.release_commands import TokenOption


def add_to(app: typer.Typer) -> None:
    quarantine = typer.Typer(no_args_is_help=True, help="Stop somebody or something now, whatever the rules say.")
    quarantine.command()(impose)
    quarantine.command("list")(list_quarantines)
    quarantine.command()(lift)
    app.add_typer(quarantine, name="quarantine", rich_help_panel=PANEL)


def impose(
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="What is stopped: session, user, agent, server, tool.")],
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE",
            help="A session id; a login, a subject id or 'issuer|subject'; an agent; a server; 'server/tool'.",
        ),
    ],
    reason: Annotated[str, typer.Option("--reason", help="The sentence that the refused caller is given.")],
    lasts: Annotated[
        str, typer.Option("--for", metavar="AGE", help="How long: 15m, 2h, 7d.", show_default="until lifted")
    ] = "",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Have every edge refuse the calls that match, from now on; calls under way go on.

    A login is looked up in the recorded calls; where ClickHouse is away, give the subject id or 'issuer|subject'.
    """
    from tidegate_cli.quarantining import impose_quarantine, scope_named

    impose_quarantine(scope_named(scope), value, reason, lasts, config, token, as_json)


def list_quarantines(
    ids: Annotated[bool, typer.Option("--ids", help="Print ids alone, one a line.")] = False,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """List what is quarantined now, oldest first."""
    from tidegate_cli.quarantining import show_quarantines

    show_quarantines(config, token, ids, as_json)


def lift(
    quarantine_id: Annotated[str, typer.Argument(metavar="QUARANTINE_ID")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the log.")] = "",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """End a quarantine; the edges serve again within a second."""
    from tidegate_cli.quarantining import lift_quarantine

    lift_quarantine(quarantine_id, reason, config, token, as_json)
