"""`tidegate log tail` and `tidegate why`: what happens, and why a call was decided as it was."""

from typing import Annotated, Literal

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption

PANEL = "Ask"


def add_to(app: typer.Typer) -> None:
    log = typer.Typer(no_args_is_help=True, help="The log: every call, session, finding and change of rules.")
    log.command("tail")(tail)
    app.add_typer(log, name="log", rich_help_panel=PANEL)
    app.command("why", rich_help_panel=PANEL)(why)
    app.command("status", rich_help_panel=PANEL)(status)


def tail(
    user: Annotated[str, typer.Option("--user", help="Only this person: login, subject or subject id.")] = "",
    agent: Annotated[str, typer.Option("--agent", help="Only this agent.")] = "",
    tool: Annotated[str, typer.Option("--tool", help="Only this tool: git_log, or git__git_log.")] = "",
    server: Annotated[str, typer.Option("--server", help="Only this server.")] = "",
    decision: Annotated[
        Literal["allow", "deny", "ask", "limited"] | None, typer.Option("--decision", help="Only these.")
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="AGE", help="From then on: 90s, 15m, 2h, 7d, or a time.")
    ] = "",
    last: Annotated[int, typer.Option("--last", min=0, help="Begin with that many of the past, without --since.")] = 20,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Stay, and show events as they come.")] = True,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show events as they come, the youngest last; with --json one a line, as it is stored but for what is sealed,
    which is opened. What edges count for guards (bundle.observed) is left to --json.
    """
    from tidegate_cli.matching import Wanted, age_us
    from tidegate_cli.tailing import show_tail

    wanted = Wanted(user=user, agent=agent, tool=tool, server=server, decision=decision or "", since_us=age_us(since))
    show_tail(config, wanted, last=last, follow=follow, as_json=as_json)


def why(
    decision_id: Annotated[
        str, typer.Argument(metavar="DECISION_ID", help="A call's id, or its beginning: denials and tail show it.")
    ],
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Tell one call's story: who, what, the decision, the rules that made it, findings, times and outcome."""
    from tidegate_cli.explaining import explain

    explain(config, decision_id, as_json)


def status(config: ConfigOption = CONFIG_DEFAULT, as_json: JsonOption = False) -> None:
    """Show whether the services are ready, which release each edge runs, quarantines, and what waits to be shipped.

    Exit code 1 where something is not ready.
    """
    from tidegate_cli.status import show_status

    raise typer.Exit(show_status(config, as_json))
