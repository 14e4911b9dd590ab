"""`tidegate bundle`: the rules, from the first draft to the release that rules."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tidegate_cli import release_commands as releases
from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption
from tidegate_cli.release_commands import DirectoryArgument, RingOption, TokenOption

PANEL = "Govern"


def add_to(app: typer.Typer) -> None:
    bundle = typer.Typer(
        no_args_is_help=True,
        help="Policy bundles: begin, check, test, compare, replay, publish, promote, roll back, see.",
    )
    bundle.command()(init)
    bundle.command()(check)
    bundle.command("test")(try_cases)
    bundle.command()(diff)
    bundle.command()(replay)
    releases.add_to(bundle)
    bundle.command("show")(show)
    app.add_typer(bundle, name="bundle", rich_help_panel=PANEL)


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")],
    team: Annotated[str, typer.Option("--team", help="The group that may use what only reads.")] = "eng",
    schema_only: Annotated[
        bool, typer.Option("--schema-only", help="Only write the schema of an existing bundle anew.")
    ] = False,
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Begin a bundle: a working policy for the configured servers, with a schema of their tools as they are now.

    The servers are asked directly; Tidegate need not run.
    """
    from tidegate_cli.bundle_starting import start_bundle

    raise typer.Exit(start_bundle(directory, config, team, schema_only, as_json))


def check(
    directory: DirectoryArgument,
    show_cedar: Annotated[bool, typer.Option("--show-cedar", help="Show the Cedar that grants.yaml compiles to.")] = (
        False
    ),
    against: Annotated[
        str,
        typer.Option("--against", metavar="RELEASE|DIR", help="Show what it decides otherwise than that, or `ruling`."),
    ] = "",
    strict: Annotated[
        bool, typer.Option("--fail-on-more-permissive", help="Exit code 1 where --against shows more let pass.")
    ] = False,
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's directory without any service: grants, rules, schema, entities, inspection, and its own cases.

    With --against it is also compared with another bundle: what became more permissive, stricter or unreachable; a
    release, or `ruling` for what rules, is asked of the policy service. Exit code 1 where it could not be released.
    """
    from tidegate_cli.bundles import show_check

    raise typer.Exit(show_check(directory, show_cedar, against, strict, ring, config, token, as_json))


def try_cases(
    directory: DirectoryArgument,
    cases: Annotated[
        list[Path], typer.Argument(metavar="[CASES]…", help="Further files of cases.", default_factory=list)
    ],
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="Only cases whose note has this in it.")] = "",
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the results as JUnit XML for a build server.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide the cases of a bundle, and those of further files, and show each verdict with its rules and why.

    Exit code 1 where one fails, or none was tried.
    """
    from tidegate_cli.bundle_testing import show_cases

    raise typer.Exit(show_cases(directory, cases, only, junit, as_json))


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A bundle's directory, or a release: number or digest.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same.")],
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show what NEW decides otherwise than OLD: what it allows, asks or refuses more, and rules that no call reaches.

    Decided over the principals, tools and argument values that the rules and cases of both mention.
    """
    from tidegate_cli.bundle_comparing import show_differences

    show_differences(old, new, ring, config, token, as_json)


def replay(
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="A bundle's directory, or a release: number or digest.")
    ],
    since: Annotated[
        str, typer.Option("--since", metavar="AGE", help="Calls requested from then on: 90s, 15m, 2h, 7d, or a time.")
    ] = "7d",
    until: Annotated[
        str, typer.Option("--until", metavar="AGE", help="Calls requested before then.", show_default="now")
    ] = "",
    server: Annotated[str, typer.Option("--server", help="Only this server.")] = "",
    tool: Annotated[str, typer.Option("--tool", help="Only this tool, by the server's own name of it.")] = "",
    agent: Annotated[str, typer.Option("--agent", help="Only this agent.")] = "",
    store: Annotated[
        Literal["clickhouse", "log"], typer.Option("--from", help="Where the recorded calls are read.")
    ] = "clickhouse",
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="Exit code 1 where any decision would change.")
    ] = False,
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Decide recorded calls again by a candidate, before it rules: what would newly be allowed, asked or denied.

    Decided from what each call's event keeps: user, groups, agent, the tool's labels then, and the arguments where they
    were kept whole. Where they were not and matter, the call is counted apart.
    """
    from tidegate_cli.matching import age_us
    from tidegate_cli.past_calls import Span
    from tidegate_cli.replaying import show_replay

    span = Span(
        tenant="",
        since_us=age_us(since),
        until_us=age_us(until, option="--until"),
        server=server,
        tool=tool,
        agent=agent,
    )
    raise typer.Exit(show_replay(candidate, ring, span, store, config, token, fail_on_change, as_json))


def show(
    digest: Annotated[str, typer.Argument(metavar="[DIGEST]", help="A bundle's digest, or its beginning.")] = "",
    current: Annotated[bool, typer.Option("--current", help="The one that rules the ring.")] = False,
    ring: RingOption = "main",
    token: TokenOption = "",
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show a bundle's files as they were released."""
    from tidegate_cli.bundles import show_bundle

    show_bundle("" if current else digest, ring, config, token, as_json)
