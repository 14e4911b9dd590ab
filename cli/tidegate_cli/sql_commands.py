"""`tidegate sql`: a question to ClickHouse, read-only and bounded."""

from typing import Annotated, Literal

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption

ROWS_DEFAULT = 1_000
ROWS_MAX = 1_000_000
Form = Literal["table", "csv", "json", "jsonl"]


def add_to(app: typer.Typer) -> None:
    app.command("sql", rich_help_panel="Ask")(sql)


def sql(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="One SELECT (or SHOW, DESCRIBE, EXPLAIN); - reads it from stdin.")
    ],
    form: Annotated[Form, typer.Option("--format", "-f", help="How rows are printed.")] = "table",
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, max=ROWS_MAX, help="Print so many at most; the rest is counted out.")
    ] = ROWS_DEFAULT,
    params: Annotated[
        list[str], typer.Option("--param", metavar="NAME=VALUE", help="The value of {NAME:String} in the query.")
    ] = [],  # noqa: B006
    config: ConfigOption = CONFIG_DEFAULT,
) -> None:
    """Ask ClickHouse: the running engine of local mode, or the server that the configuration names.

    Views are named with their database, as tidegate.calls. docs/analytics.md has questions to begin with.
    """
    from tidegate_cli.sql_work import ask

    ask(config, query, form=form, rows_max=rows, params=params)
