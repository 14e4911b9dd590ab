"""`tidegate catalog`: what servers offer, what of it is trusted, what changed, and approving it."""

from typing import Annotated

import typer

from tidegate_cli.bundle_commands import PANEL
from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.release_commands import TokenOption

RingOption = Annotated[str, typer.Option("--ring", help="Judged by the bundle that rules this ring.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="SERVER[/TOOL]", help="A server, or one tool of it by the server's own name.")
]


def add_to(app: typer.Typer) -> None:
    catalog = typer.Typer(no_args_is_help=True, help="See which definitions of tools are trusted, and approve changes.")
    catalog.command("list")(list_catalog)
    catalog.command()(diff)
    catalog.command()(approve)
    app.add_typer(catalog, name="catalog", rich_help_panel=PANEL)


def list_catalog(
    server: Annotated[str, typer.Argument(metavar="[SERVER]", help="Only this server.")] = "",
    pending: Annotated[bool, typer.Option("--pending", help="Only what is held, new or changed.")] = False,
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """List the tools that servers offer now: whether their definition is trusted, new, changed or held, since when."""
    from tidegate_cli.cataloguing import show_catalog

    show_catalog(server, pending, ring, config, token, as_json)


def diff(
    target: TargetArgument,
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show what differs from the trusted definition, gravest first, with hidden characters made visible.

    Of a server: every tool that is held, new or changed. Ends with the digest that `approve --digest` takes.
    """
    from tidegate_cli.cataloguing import show_differences

    show_differences(target, ring, config, token, as_json)


def approve(
    target: TargetArgument,
    digest: Annotated[
        str, typer.Option("--digest", help="Approve only what was looked at: the digest that `diff` showed.")
    ] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the log.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Approve whatever is offered now, without asking.")] = False,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Trust what a server offers now: one tool, or all of its tools. What was held is offered again within a second.

    Shows what changed and asks; where nobody can be asked, --digest or --yes is needed.
    """
    from tidegate_cli.cataloguing import approve_offered

    approve_offered(target, digest, reason, yes, config, token, as_json)
