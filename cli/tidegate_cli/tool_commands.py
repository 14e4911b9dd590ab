"""`tidegate tools` and `tidegate call`: what a person with an agent may do, tried from the shell."""

from typing import Annotated

import typer

from tidegate.errors import ConfigFault
from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption

PANEL = "Call"
WHO = ("user", "agent", "groups")
UserOption = Annotated[str, typer.Option("--user", envvar="TIDEGATE_USER", help="Who calls (local issuer).")]
AgentOption = Annotated[str, typer.Option("--agent", help="The agent that calls (local issuer).")]
GroupsOption = Annotated[
    list[str],
    typer.Option("--groups", envvar="TIDEGATE_GROUPS", metavar="NAME[,NAME]", help="Their groups (local issuer)."),
]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token", envvar="TIDEGATE_TOKEN", help="A token, instead of one made for --user, --agent and --groups."
    ),
]
UrlOption = Annotated[str, typer.Option("--url", help="The MCP endpoint; default: {public_url}/mcp.")]
USER_DEFAULT = "alice@example.com"
AGENT_DEFAULT = "tidegate-cli"


def add_to(app: typer.Typer) -> None:
    app.command("tools", rich_help_panel=PANEL)(tools)
    app.command("call", rich_help_panel=PANEL)(call)


def tools(
    context: typer.Context,
    user: UserOption = USER_DEFAULT,
    agent: AgentOption = AGENT_DEFAULT,
    groups: GroupsOption = [],  # noqa: B006
    token: TokenOption = "",
    url: UrlOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """List the tools that this person with this agent may call; what policy does not grant is not there."""
    from tidegate_cli.calling import Caller, show_tools

    show_tools(Caller(config, user, agent, tuple(groups), _chosen(context, token), url), as_json)


def call(
    context: typer.Context,
    tool: Annotated[str, typer.Argument(metavar="SERVER__TOOL", help="For example time__get_current_time.")],
    values: Annotated[
        list[str], typer.Argument(metavar="[KEY=VALUE]...", help="Arguments, as the tool's schema types them.")
    ] = [],  # noqa: B006
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="All arguments as one JSON object.")] = "",
    user: UserOption = USER_DEFAULT,
    agent: AgentOption = AGENT_DEFAULT,
    groups: GroupsOption = [],  # noqa: B006
    token: TokenOption = "",
    url: UrlOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Make one tool call through the running gateway, and show the result, or who refused it and why.

    Exit code 0: the tool answered; 1: it was refused, or failed.
    """
    from tidegate_cli.calling import Caller, make_call

    caller = Caller(config, user, agent, tuple(groups), _chosen(context, token), url)
    raise typer.Exit(make_call(caller, tool, values, args, as_json))


def _chosen(context: typer.Context, token: str) -> str:
    """The token, if it is to be used: whom the command line names wins over a token that lies in the environment.

    Raises ConfigFault where the command line has both.
    """
    named = [option for option in WHO if _source(context, option) == "COMMANDLINE"]
    if not named or not token:
        return token
    if _source(context, "token") == "COMMANDLINE":
        raise ConfigFault(f"--token says who calls, and so does --{named[0]}; leave one of them out")
    return ""


def _source(context: typer.Context, option: str) -> str:
    found = context.get_parameter_source(option)
    return "" if found is None else found.name
