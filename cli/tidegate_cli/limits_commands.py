"""`tidegate limits`: how much of the limits is used."""

from typing import Annotated

import typer

from tidegate_cli.bundle_commands import PANEL
from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.release_commands import TokenOption


def add_to(app: typer.Typer) -> None:
    limits = typer.Typer(no_args_is_help=True, help="See what of the limits and budgets is used.")
    limits.callback()(_group)
    limits.command()(show)
    app.add_typer(limits, name="limits", rich_help_panel=PANEL)


def _group() -> None:
    """See what of the limits and budgets is used."""


def show(
    limit: Annotated[str, typer.Option("--limit", metavar="ID", help="Of this limit alone.")] = "",
    user: Annotated[str, typer.Option("--user", metavar="WHO", help="A login, a subject id or 'issuer|subject'.")] = "",
    agent: Annotated[str, typer.Option("--agent", help="Of this agent alone.")] = "",
    server: Annotated[str, typer.Option("--server", help="Of this server alone.")] = "",
    tool: Annotated[str, typer.Option("--tool", metavar="SERVER/TOOL", help="Of this tool alone.")] = "",
    most: Annotated[int, typer.Option("--most", min=1, max=1_000, help="Show so many at most, fullest first.")] = 100,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show what is used, what is left, when there is some again and when all; one line for each counter.

    A limit has a counter for each combination of what it is kept per, once somebody has used it.
    """
    from tidegate_cli.limits_showing import show_limits

    wanted = {"limit": limit, "user": user, "agent": agent, "server": server, "tool": tool}
    show_limits(wanted, most, config, token, as_json)
