"""`tidegate can`: what somebody could call, and when."""

from typing import Annotated, Literal

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption

PANEL = "Ask"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(can)


def can(
    user: Annotated[
        str,
        typer.Option(
            "--user", help="The person: a login, a subject or a subject id; left out: anybody in these --groups."
        ),
    ] = "",
    agent: Annotated[str, typer.Option("--agent", help="The agent that acts; rules may look at it.")] = "",
    groups: Annotated[
        list[str] | None,
        typer.Option("--groups", help="With these groups, as eng,oncall; default: those of the latest recorded call."),
    ] = None,
    service: Annotated[
        bool | None,
        typer.Option(
            "--service/--person",
            help="It is a service account, a `ServiceAccount` to the rules, or a person; default: as the latest "
            "recorded call says.",
        ),
    ] = None,
    at: Annotated[
        str, typer.Option("--at", metavar="TIME", help="As of then: 2026-11-01T12:00, or an age as 7d.")
    ] = "",
    server: Annotated[str, typer.Option("--server", help="Only this server.")] = "",
    ring: Annotated[str, typer.Option("--ring", help="The ring of the edge; default: main.")] = "",
    region: Annotated[
        str, typer.Option("--region", help="The region of the edge, where a canary rules some regions alone.")
    ] = "",
    edge_label: Annotated[
        list[str] | None,
        typer.Option("--edge-label", metavar="KEY=VALUE", help="A label of the edge, likewise; repeatable."),
    ] = None,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Tell everything that an agent could call for a person, now or then, by which rule, and why not the rest.

    From the log alone: the release or canary that decides for them, the tools with their labels and the quarantines as
    they stood.
    """
    from tidegate_cli.abilities import Where, show_abilities
    from tidegate_cli.matching import age_us
    from tidegate_cli.options import labels_of, names_of

    at_us = age_us(at, option="--at")
    kind: Literal["user", "service"] | None = None if service is None else "service" if service else "user"
    where = Where(ring, region, labels_of(edge_label or []))
    show_abilities(user, agent, names_of(groups or []), at_us, server, where, config, as_json, kind)
