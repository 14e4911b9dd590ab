"""The `tidegate` command: what there is to say, and how a fault ends. The work is in the modules beside this one.

Rules: a command imports its work when it runs, so that help and tokens are there at once; stdout holds the answer and
nothing else; 0 is done, 1 a refusal or failure, 2 a wrong use or configuration.
"""

import sys

import typer

from tidegate.errors import ConfigFault, Fault
from tidegate_cli import (
    ability_commands,
    approval_commands,
    bundle_commands,
    catalog_commands,
    erase_commands,
    export_commands,
    limits_commands,
    log_commands,
    quarantine_commands,
    rebuild_commands,
    serve_commands,
    spool_commands,
    sql_commands,
    tool_commands,
    trust_commands,
    verify_commands,
)
from tidegate_cli.faults import fault_in
from tidegate_cli.output import seen

GUIDE = """
One MCP endpoint for all your agents: every tool call authenticated, decided by policy, inspected and recorded.

[bold]Start[/] everything in one process, with nothing else to install:
  [cyan]tidegate up --config tidegate.yaml[/]

[bold]Call[/] a tool as a person with an agent, and see what is decided:
  [cyan]tidegate call time__get_current_time timezone=Europe/Paris --groups eng[/]

[bold]Ask[/] what happens, and why:
  [cyan]tidegate log tail[/]
  [cyan]tidegate why DECISION_ID[/]
  [cyan]tidegate sql "SELECT * FROM tidegate.denials"[/]

[bold]Change[/] the rules:
  [cyan]tidegate bundle check policy/[/]
  [cyan]tidegate bundle publish policy/[/]

Every command reads tidegate.yaml in this directory, unless --config or TIDEGATE_CONFIG names another file.
"""

app = typer.Typer(
    name="tidegate",
    help=GUIDE,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
serve_commands.add_to(app)
tool_commands.add_to(app)
log_commands.add_to(app)
ability_commands.add_to(app)
sql_commands.add_to(app)
bundle_commands.add_to(app)
approval_commands.add_to(app)
limits_commands.add_to(app)
quarantine_commands.add_to(app)
catalog_commands.add_to(app)
export_commands.add_to(app)
verify_commands.add_to(app)
rebuild_commands.add_to(app)
spool_commands.add_to(app)
erase_commands.add_to(app)
trust_commands.add_to(app)


def main() -> None:
    """Entry point. An expected fault is one sentence on stderr, never a traceback."""
    try:
        app()
    except Fault as fault:
        sys.exit(_told(fault))
    except BaseExceptionGroup as group:
        inner = fault_in(group)
        if inner is None:
            raise
        sys.exit(_told(inner))
    except KeyboardInterrupt:
        sys.exit(130)


def _told(fault: Fault) -> int:
    typer.secho(f"tidegate: {seen(fault.sentence)}", fg=typer.colors.RED, err=True)
    return 2 if isinstance(fault, ConfigFault) else 1


if __name__ == "__main__":
    main()
