"""`tidegate up`, `edge`, `policy`, `audit-consumer`, `detector`, `status`: the processes. Counterpart: `running.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption

ALL = ("edge", "policy", "audit-consumer", "detector")
PANEL = "Run"
ListenOption = Annotated[
    str | None, typer.Option("--listen", metavar="HOST:PORT", help="Instead of the file's `listen`.")
]


def add_to(app: typer.Typer) -> None:
    app.command("up", rich_help_panel=PANEL)(up)
    app.command("demo", rich_help_panel=PANEL)(demo)
    for service, meaning in (
        ("edge", "Run one edge: it terminates MCP, decides, inspects, records and forwards."),
        ("policy", "Run the policy service: bundles, releases, quarantines, the management API."),
        ("audit-consumer", "Run the audit consumer: it writes the log to ClickHouse, each event once."),
        ("detector", "Run the detector: it reads the log and raises findings."),
    ):
        app.command(service, help=meaning, rich_help_panel=PANEL)(_one(service))


def up(
    config: ConfigOption = CONFIG_DEFAULT,
    listen: ListenOption = None,
) -> None:
    """Run everything in this process: edge, policy service, audit consumer, detector, with embedded log and ClickHouse.

    Ctrl-C drains and stops. What was recorded is there at the next start.
    """
    from tidegate_cli.serving import serve

    raise typer.Exit(serve(config, ALL, listen))


def demo(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The first example's configuration, or a copy of it.")
    ] = Path("examples/01-first-call/tidegate.yaml"),
    listen: ListenOption = None,
) -> None:
    """Run the first example, let an agent make its first calls, and show what came of them; then stay up for yours.

    Ctrl-C drains and stops. The next demo goes on with the calls that this one recorded.
    """
    from tidegate_cli.serving import serve_demo

    raise typer.Exit(serve_demo(config, listen))


def _one(service: str) -> Callable[[Path], None]:
    def run(config: ConfigOption = CONFIG_DEFAULT) -> None:
        from tidegate_cli.serving import serve

        raise typer.Exit(serve(config, (service,), None))

    return run
