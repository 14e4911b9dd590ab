"""`tidegate export` and `tidegate dead-letters`: what was recorded for other tools, and what could not be read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption

PANEL = "Audit"
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The record's position, as `list` shows it: calls/0/17.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", help="Only these: not-json, wrong-shape, unknown-type, out-of-range, no-value.")
]


def add_to(app: typer.Typer) -> None:
    app.command("export", rich_help_panel=PANEL)(export)
    letters = typer.Typer(no_args_is_help=True, help="Records that could not be read: see them, try them again.")
    letters.command("list")(list_letters)
    letters.command("show")(show)
    letters.command("retry")(retry)
    app.add_typer(letters, name="dead-letters", rich_help_panel=PANEL)


def export(
    since: Annotated[
        str, typer.Option("--since", metavar="AGE", help="Calls requested from then on: 90s, 15m, 2h, 7d, or a time.")
    ],
    form: Annotated[
        Literal["ocsf", "jsonl", "cef"],
        typer.Option("--format", help="ocsf: API Activity (6003); jsonl: the columns of `calls`; cef: CEF:0."),
    ] = "ocsf",
    until: Annotated[
        str, typer.Option("--until", metavar="AGE", help="Calls requested before then.", show_default="now")
    ] = "",
    server: Annotated[str, typer.Option("--server", help="Only this server.")] = "",
    decision: Annotated[
        Literal["", "allow", "deny", "ask", "limited"],
        typer.Option("--decision", help="Only calls so decided.", show_default=False),
    ] = "",
    tenant: Annotated[
        str, typer.Option("--tenant", help="Only this tenant.", show_default="all that may be read")
    ] = "",
    personal: Annotated[
        bool,
        typer.Option("--personal/--no-personal", help="With logins; and with content as it was captured, in jsonl."),
    ] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Written whole or not at all.")
    ] = None,
    config: ConfigOption = CONFIG_DEFAULT,
) -> None:
    """Print calls from ClickHouse for other tools, one a line, in the order of their requests."""
    from tidegate_cli.export_pages import Span
    from tidegate_cli.exporting import export_calls
    from tidegate_cli.matching import age_us

    span = Span(
        since_us=age_us(since),
        until_us=age_us(until, option="--until"),
        server=server,
        decision=decision,
        tenant=tenant,
        personal=personal,
    )
    export_calls(config, span, form, output)


def list_letters(
    reason: ReasonOption = "",
    topic: Annotated[str, typer.Option("--topic", help="Only records of this topic, as calls.")] = "",
    last: Annotated[int, typer.Option("--last", min=1, max=10_000, help="The youngest so many.")] = 50,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """List records that could not be read, the youngest last, and whether a retry has stored them since."""
    from tidegate_cli.dead_lettering import show_list

    show_list(config, reason=reason, topic=topic, last=last, as_json=as_json)


def show(
    letter: IdArgument,
    raw: Annotated[bool, typer.Option("--raw", help="Print the record's own bytes and nothing else.")] = False,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show one record that could not be read: why, its headers and its bytes. They may hold personal fields."""
    from tidegate_cli.dead_lettering import show_letter

    show_letter(config, letter, raw=raw, as_json=as_json)


def retry(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Positions, as `list` shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    reason: ReasonOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Read the original bytes again, as this version does, and store what can be read now; as often as you like.

    Exit code 1 where something still cannot be read.
    """
    from tidegate_cli.dead_lettering import retry_letters

    raise typer.Exit(retry_letters(config, tuple(ids or ()), everything=everything, reason=reason, as_json=as_json))
