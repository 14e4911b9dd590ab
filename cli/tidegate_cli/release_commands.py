"""The commands of `tidegate bundle` about releases: publish, promote, rollback, status, list."""

from pathlib import Path
from typing import Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.ring_options import (
    CallsOption,
    CanaryOption,
    DenialsOption,
    EdgeLabelOption,
    ErrorsOption,
    GroupOption,
    RegionOption,
    ReplaceOption,
    ShadowOption,
    SlowOption,
    WatchOption,
    guard_query,
    stage_query,
)

RingOption = Annotated[str, typer.Option("--ring", help="The ring of edges that it is for.")]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token", envvar="TIDEGATE_ADMIN_TOKEN", help="An administrator's token; default: the local issuer's."
    ),
]
DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="manifest.json, grants.yaml, policies/*.cedar, …")
]


def add_to(bundle: typer.Typer) -> None:
    for command in (publish, promote, rollback, status):
        bundle.command()(command)
    bundle.command("list")(list_releases)


def publish(
    directory: DirectoryArgument,
    ring: RingOption = "main",
    canary: CanaryOption = "",
    region: RegionOption = [],  # noqa: B006
    group: GroupOption = [],  # noqa: B006
    edge_label: EdgeLabelOption = [],  # noqa: B006
    shadow: ShadowOption = False,
    replace: ReplaceOption = False,
    guard_denials: DenialsOption = "",
    guard_errors: ErrorsOption = "",
    guard_slow: SlowOption = "",
    guard_calls: CallsOption = None,
    watch: WatchOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Check, sign and release a bundle; the edges of the ring obey it within a second.

    What it lets pass that the ruling bundle does not is shown first; on a terminal you are asked then. Without one
    it is released: have a pipeline run `tidegate bundle check DIR --against ruling --fail-on-more-permissive` before.

    For everybody, or as a canary for some, or as a shadow that decides nothing. With a guard it is taken back by itself
    where it does worse than what ruled before, or rules beside it.
    """
    from tidegate_cli.bundle_releasing import show_publish

    stage = stage_query(canary, shadow, region, group, edge_label)
    guard = guard_query(guard_denials, guard_errors, guard_slow, guard_calls, watch)
    raise typer.Exit(show_publish(directory, ring, stage, guard, replace, yes, config, token, as_json))


def promote(
    meant: Annotated[
        str, typer.Argument(metavar="[NUMBER|DIGEST]", help="The canary that is meant: refused where it is another.")
    ] = "",
    source: Annotated[
        str, typer.Option("--from", metavar="RING|canary", help="The canary, or another ring's ruling bundle.")
    ] = "canary",
    ring: RingOption = "main",
    guard_denials: DenialsOption = "",
    guard_errors: ErrorsOption = "",
    guard_slow: SlowOption = "",
    guard_calls: CallsOption = None,
    watch: WatchOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Let a ring's canary rule it, or what rules another ring; the canary ends.

    Says what is promoted and how many calls it decided. Where those are too few for its guard it asks, on a terminal
    and without NUMBER or DIGEST.
    """
    from tidegate_cli.bundle_promoting import show_promotion

    guard = guard_query(guard_denials, guard_errors, guard_slow, guard_calls, watch)
    show_promotion(meant, ring, source, guard, yes, config, token, as_json)


def rollback(
    to: Annotated[str, typer.Argument(metavar="[NUMBER|DIGEST]", help="The release to return to.")] = "",
    canary: Annotated[bool, typer.Option("--canary", help="End the ring's canary.")] = False,
    shadow: Annotated[bool, typer.Option("--shadow", help="End the ring's shadow.")] = False,
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Release an earlier bundle again, under a new number; or end a canary or shadow."""
    from tidegate_cli.bundle_releasing import show_rollback, show_withdrawal

    if (bool(to), canary, shadow).count(True) != 1:
        raise typer.BadParameter("name a release to return to, or --canary or --shadow to end that")
    if to:
        show_rollback(to, ring, config, token, as_json)
    else:
        show_withdrawal("canary" if canary else "shadow", ring, config, token, as_json)


def status(
    ring: Annotated[str, typer.Option("--ring", help="Only this ring.")] = "",
    follow: Annotated[bool, typer.Option("--watch", help="Show it again whenever it changes, until Ctrl-C.")] = False,
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show each ring: what rules, canary and shadow with what they decided, edges and what they run or refuse."""
    from tidegate_cli.bundle_status import show_status

    show_status(ring, follow, config, token, as_json)


def list_releases(
    ring: Annotated[str, typer.Option("--ring", help="Only this ring.")] = "",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """List releases, newest first: canaries, shadows, what rules, what is retired, and why."""
    from tidegate_cli.bundle_releasing import show_releases

    show_releases(ring, config, token, as_json)
