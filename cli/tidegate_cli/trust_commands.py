"""`tidegate token` and `tidegate secrets`: what makes a caller known, and what all edges must share."""

from typing import TYPE_CHECKING, Annotated

import typer

from tidegate_cli.options import CONFIG_DEFAULT, ConfigOption, JsonOption, live_settings, names_of

if TYPE_CHECKING:
    from tidegate.settings import Settings

UserOption = Annotated[str, typer.Option("--user", help="Who calls: the token's subject, often an e-mail address.")]
AgentOption = Annotated[str, typer.Option("--agent", help="The agent that calls for them: the token's client_id.")]
GroupsOption = Annotated[list[str], typer.Option("--groups", metavar="NAME[,NAME]", help="The person's groups.")]


def add_to(app: typer.Typer) -> None:
    app.command("token", rich_help_panel="Trust")(token)
    secrets = typer.Typer(no_args_is_help=True, help="The secrets that all edges of a cluster share.")
    secrets.command("init")(init)
    secrets.command("privacy-key")(privacy_key)
    app.add_typer(secrets, name="secrets", rich_help_panel="Trust")


def token(
    user: UserOption,
    agent: AgentOption,
    groups: GroupsOption = [],  # noqa: B006 - typer reads it, nobody changes it
    ttl: Annotated[int, typer.Option("--ttl", metavar="SECONDS", help="How long it is valid.")] = 3600,
    audience: Annotated[
        list[str], typer.Option("--audience", metavar="URL", help="Whom it is for; default: the MCP endpoints.")
    ] = [],  # noqa: B006
    config: ConfigOption = CONFIG_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Print an access token of the local issuer, for trials and tests.

    Export it where your agent reads it: export TIDEGATE_TOKEN=$(tidegate token --user alice@example.com --agent
    claude-code --groups eng). In production your identity provider issues the tokens: see identity.issuers.
    """
    import time

    from tidegate_cli.output import print_document

    settings = live_settings(config)
    now_s = int(time.time())
    audiences = tuple(audience) or settings.audiences
    made = mint(settings, user, agent, names_of(groups), ttl, audiences, now_s)
    if as_json:
        print_document({"token": made, "expires_at": now_s + ttl, "audience": audiences})
    else:
        typer.echo(made)


def mint(
    settings: "Settings",
    user: str,
    agent: str,
    groups: tuple[str, ...],
    ttl_s: int,
    audiences: tuple[str, ...],
    now_s: int,
) -> str:
    """Raises ConfigFault where the local issuer is off: nobody would accept its tokens."""
    from tidegate.errors import ConfigFault
    from tidegate.local_issuer import open_local_issuer

    if not settings.local_issuer:
        raise ConfigFault(
            "the local token issuer is off here, so its tokens would be refused; "
            "take one from your identity provider, or set identity.local_issuer: true for a trial"
        )
    return open_local_issuer(settings).mint(user, agent, groups, ttl_s, audiences, now_s)


def init(config: ConfigOption = CONFIG_DEFAULT, as_json: JsonOption = False) -> None:
    """Make the file with the pepper, the fingerprint key and the sealing keys; every edge gets the same file.

    Local mode makes it by itself at its first start. An existing file is never replaced: with other secrets people
    would appear under other pseudonyms, and open sessions would end.
    """
    from tidegate.errors import OurFault
    from tidegate.secrets import create_secrets, secrets_path
    from tidegate_cli.output import print_document

    path = secrets_path(live_settings(config))
    if path.exists():
        raise OurFault(f"{path} exists and stays as it is; delete it by hand if you really want new secrets")
    create_secrets(path)
    if as_json:
        print_document({"secrets_file": str(path)})
    else:
        typer.echo(f"Made {path}. Give every edge this same file, and nobody else.")


def privacy_key(config: ConfigOption = CONFIG_DEFAULT, as_json: JsonOption = False) -> None:
    """Make the file of the master that wraps subjects' keys; every service that opens personal fields gets the same.

    An existing file gets a new first line: from then on it wraps, and the lines below it still unwrap. Keep those while
    records that they lead to are to be read.
    """
    from tidegate.errors import ConfigFault
    from tidegate.privacy.master import add_master, master_path
    from tidegate_cli.output import print_document

    path = master_path(live_settings(config))
    if path is None:
        raise ConfigFault("$.privacy.key_file: name the file first, for example key_file: /etc/tidegate/privacy.key")
    count = add_master(path)
    if as_json:
        print_document({"key_file": str(path), "keys": count})
    else:
        made = "Made" if count == 1 else f"Key {count} is the first line of"
        typer.echo(
            f"{made} {path}. Give every service this same file, restart them, and keep it off backups of the log."
        )
