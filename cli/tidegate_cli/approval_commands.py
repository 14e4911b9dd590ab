"""`tidegate approvals`: calls that a rule wants a person to look at, and what the person says."""

from typing import Annotated, Literal

import typer

from tidegate_cli.bundle_commands import PANEL
from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.release_commands import TokenOption

UserOption = Annotated[str, typer.Option("--user", help="Who decides (local issuer).", show_default="an administrator")]
GroupsOption = Annotated[
    list[str], typer.Option("--groups", metavar="NAME[,NAME]", help="The groups of --user (local issuer).")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The approval's id: refusals and `list` show it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; recorded for good: name nobody in it.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Decide without asking.")]


def add_to(app: typer.Typer) -> None:
    approvals = typer.Typer(
        no_args_is_help=True, help="Calls that wait for a person: list, show, approve or deny them."
    )
    approvals.command("list")(list_approvals)
    for command in (show, approve, deny):
        approvals.command()(command)
    app.add_typer(approvals, name="approvals", rich_help_panel=PANEL)


def list_approvals(
    state: Annotated[
        Literal["pending", "all"], typer.Option("--state", help="all: what was decided, too, until it is over.")
    ] = "pending",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, and show what comes and goes.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Print ids alone, one a line.")] = False,
    user: UserOption = "",
    groups: GroupsOption = [],  # noqa: B006
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """List calls that wait, newest first: for how long they have waited, and how long is left.

    An administrator sees all; others see those that their groups may decide, and their own.
    """
    from tidegate_cli.approving import Asker, show_approvals, watch_approvals

    asker = Asker(config, token, user, tuple(groups))
    if watch:
        watch_approvals(asker, state, as_json)
    else:
        show_approvals(asker, state, ids, as_json)


def show(
    approval_id: IdArgument,
    user: UserOption = "",
    groups: GroupsOption = [],  # noqa: B006
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show one call that waits: who, through which agent, with which arguments, and why a rule asks."""
    from tidegate_cli.approving import Asker, show_approval

    show_approval(Asker(config, token, user, tuple(groups)), approval_id, as_json)


def approve(
    approval_id: IdArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    user: UserOption = "",
    groups: GroupsOption = [],  # noqa: B006
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Let this one call pass, once: the same person, agent, tool and arguments, before its time is over."""
    from tidegate_cli.approving import Asker, decide

    decide(Asker(config, token, user, tuple(groups)), approval_id, "grant", reason, yes, as_json)


def deny(
    approval_id: IdArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    user: UserOption = "",
    groups: GroupsOption = [],  # noqa: B006
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Refuse this one call; the requester's agent is told the reason when it calls again."""
    from tidegate_cli.approving import Asker, decide

    decide(Asker(config, token, user, tuple(groups)), approval_id, "deny", reason, yes, as_json)
