"""`tidegate verify` and `tidegate prove`: whether ClickHouse still holds what was sealed, and proof for one call."""

from pathlib import Path
from typing import Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption

PANEL = "Audit"
WhenOption = "AGE|TIME"
KeyOption = Annotated[
    list[str],
    typer.Option(
        "--key", metavar="KEY|FILE", help="The audit key's public half, or a file of such; default: trust.audit_keys."
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command("verify", rich_help_panel=PANEL)(verify)
    app.command("prove", rich_help_panel=PANEL)(prove)


def verify(
    since: Annotated[str, typer.Option("--from", metavar=WhenOption, help="Records from then on: 7d, or a time.")] = "",
    until: Annotated[str, typer.Option("--to", metavar=WhenOption, help="Records until then; default: now.")] = "",
    roots: Annotated[
        list[Path], typer.Option("--roots", metavar="FILE", help="A published file of roots, beside ClickHouse's own.")
    ] = [],  # noqa: B006
    key: KeyOption = [],  # noqa: B006
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="What --save wrote, instead of ClickHouse.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write records, roots and key there as well.")
    ] = None,
    expired_before: Annotated[
        str,
        typer.Option(
            "--expired-before",
            metavar="TIME",
            help="Take it on your word that records from before then have expired: the report says so.",
        ),
    ] = "",
    proof: Annotated[
        Path | None,
        typer.Option("--proof", metavar="FILE", help="Check what `tidegate prove` wrote, and nothing else."),
    ] = None,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Prove that ClickHouse holds every record that was sealed, as it was, and name the first that is wrong.

    Needs ClickHouse (in local mode a running `tidegate up`) or a directory, the roots and the audit key's public half.
    Exit code 1 where something is wrong, or nothing could be proven.
    """
    from tidegate_cli.verify_work import show_proof_check, show_verification

    if proof is not None:
        raise typer.Exit(show_proof_check(proof, config, key, as_json))
    raise typer.Exit(
        show_verification(
            config,
            since=since,
            until=until,
            expired_before=expired_before,
            roots=roots,
            keys=key,
            directory=directory,
            save=save,
            as_json=as_json,
        )
    )


def prove(
    call_id: Annotated[str, typer.Argument(metavar="CALL_ID", help="A call's id.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there; default: stdout.")] = None,
    key: KeyOption = [],  # noqa: B006
    config: ConfigOption = CONFIG_DEFAULT,
) -> None:
    """Write the proof that a call's records are under signed roots; `tidegate verify --proof FILE` checks it anywhere.

    It holds the call's own records as they were stored, and of all others only hashes.
    """
    from tidegate_cli.verify_work import write_proof

    write_proof(call_id.strip(), out, config, key)
