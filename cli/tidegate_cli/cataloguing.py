"""The work of `tidegate catalog`: which definitions are trusted, what changed in them, approving what is offered now.

Nothing is approved unseen: somebody is shown it and asked, or names its digest, or says `--yes`. Definitions come from
outside: all that is shown of them has its hidden characters made visible. Counterpart:
services/policy/tidegate_policy/catalogue_api.py.
"""

import sys
from collections.abc import Iterable
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

import msgspec
import typer
from rich.markup import escape

from tidegate.errors import CallerFault, ConfigFault
from tidegate.policy.instructing import visible
from tidegate_cli.management import Management, open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, print_document, say

STATE_STYLES: Final = {"held": "bold red", "changed": "yellow", "new": "cyan", "trusted": "green"}
RANK_STYLES: Final = {
    "instructing": "bold red",
    "widened": "red",
    "narrowed": "yellow",
    "described": "cyan",
    "cosmetic": "dim",
    "new": "cyan",
}
VALUE_CHARS_MAX: Final = 1_000
WORDS_MAX: Final = 400  # of a text whose words are compared one by one
DIGEST_CHARS: Final = 12


def show_catalog(server: str, pending: bool, ring: str, config: Path, token: str, as_json: bool) -> None:
    """Raises Fault."""
    found = _servers(open_management(live_settings(config), token), server, ring)
    if pending:
        found = [{**one, "tools": [tool for tool in one["tools"] if tool["state"] != "trusted"]} for one in found]
    if as_json:
        print_document(found)
        return
    tools = [tool for one in found for tool in one["tools"]]
    if not tools:
        say("Every definition is trusted." if pending and found else "No server offers a tool.")
        return
    _table(tools)
    held = sum(tool["state"] == "held" for tool in tools)
    if held:
        say(f"\n[bold red]{held} held[/]: `tidegate catalog diff SERVER/TOOL` shows what differs")


def show_differences(target: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    """Raises Fault."""
    management = open_management(live_settings(config), token)
    server, _, tool = target.partition("/")
    if tool:
        shown = [management.get("/catalog/definition", server=server, tool=tool, ring=ring)]
    else:
        listed = [one for found in _servers(management, server, ring) for one in found["tools"]]
        pending = [one["tool"] for one in listed if one["state"] != "trusted"]
        shown = [management.get("/catalog/definition", server=server, tool=name, ring=ring) for name in pending]
    if as_json:
        print_document(shown)
        return
    for one in shown:
        _show_definition(one)
    if not shown:
        say(f"Every definition of {_clean(server)} is trusted.")
    if not tool and shown:
        whole = next(found["digest"] for found in _servers(management, server, ring))
        command = f"tidegate catalog approve {_clean(server)} --digest {whole[:DIGEST_CHARS]}"
        say(f"[dim]all that {_clean(server)} offers now is approved by[/] {command}")


def approve_offered(target: str, digest: str, reason: str, yes: bool, config: Path, token: str, as_json: bool) -> None:
    """After a look at what changed. Raises Fault, typer.Abort: nothing was approved then."""
    server, _, tool = target.partition("/")
    management = open_management(live_settings(config), token)
    if not digest and not yes:
        if as_json or not sys.stdin.isatty():
            raise ConfigFault(
                f"nobody can be asked here: give --digest, which `tidegate catalog diff {_plainly(target)}` ends with, "
                "to approve what it shows, or --yes to approve whatever is offered; nothing was approved"
            )
        digest = _looked_at(management, server, tool)
    wanted = {"server": server, "tool": tool or "*", "digest": digest, "reason": reason}
    done = management.post("/catalog/approvals", msgspec.json.encode(wanted))
    if as_json:
        print_document(done)
        return
    for one in done:
        name = _clean(f"{one['server']}/{one['tool']}")
        say(f"[green]approved[/]  [bold]{name}[/]  [dim]{one['digest'][:DIGEST_CHARS]}[/]")
    if not done:
        say(f"What {_clean(target)} offers now was approved before.")


def _looked_at(management: Management, server: str, tool: str) -> str:
    """The digest of what a person was shown, and agreed to. Raises Fault, typer.Abort."""
    if tool:
        shown = [management.get("/catalog/definition", server=server, tool=tool, ring="main")]
        whole, rest = shown[0]["digest"], 0
    else:
        found = _servers(management, server, "main")
        if not found:
            raise CallerFault(f"no server '{_plainly(server)}' offers tools; `tidegate catalog list` shows all")
        whole, tools = found[0]["digest"], found[0]["tools"]
        pending = {one["tool"]: one["digest"] for one in tools if one["state"] != "trusted"}
        shown = [management.get("/catalog/definition", server=server, tool=name, ring="main") for name in pending]
        if [one["digest"] for one in shown] != list(pending.values()):
            raise CallerFault(f"what {_plainly(server)} offers changed meanwhile: look at it again")
        rest = sum(not one["approved_by"] for one in tools if one["state"] == "trusted")
    for one in shown:
        _show_definition(one, advise=False)
    if rest:
        say(f"[dim]{rest} more, trusted since first seen[/]")
    grave = sorted({one["rank"] for one in shown if one["rank"] in ("instructing", "widened")})
    which = f" ({' and '.join(grave)})" if grave else ""
    typer.confirm(
        f"Trust what {_plainly(server)}{f'/{_plainly(tool)}' if tool else ''} offers now{which}?", abort=True, err=True
    )
    return str(whole)


def _servers(management: Management, server: str, ring: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = management.get("/catalog", ring=ring, **({"server": server} if server else {}))
    return found


def _table(tools: Iterable[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("state", "tool", "rank", "since", "digest", "gravest", box=None, header_style="bold", pad_edge=False)
    for tool in tools:
        rank = tool["rank"] or ""
        table.add_row(
            f"[{STATE_STYLES[tool['state']]}]{tool['state']}[/]",
            _clean(f"{tool['server']}/{tool['tool']}"),
            f"[{RANK_STYLES.get(rank, 'dim')}]{rank}[/]",
            _when(tool["since_us"]),
            f"[dim]{tool['digest'][:DIGEST_CHARS]}[/]",
            _clean(tool["gravest"]) or f"[dim]{_trusted_by(tool)}[/]",
        )
    console().print(table)


def _trusted_by(tool: dict[str, Any]) -> str:
    if tool["approved_by"]:
        return f"approved {_when(tool['approved_us'])}"
    return "trusted since it was first seen" if tool["state"] == "trusted" else ""


def _show_definition(tool: dict[str, Any], *, advise: bool = True) -> None:
    name, rank = _clean(f"{tool['server']}/{tool['tool']}"), tool["rank"] or ""
    style = RANK_STYLES.get(rank, "dim")
    say(f"[bold]{name}[/]  [{STATE_STYLES[tool['state']]}]{tool['state']}[/]  [{style}]{rank}[/]")
    since = f"offered since {_when(tool['since_us'])}"
    against = f", compared with {tool['trusted'][:DIGEST_CHARS]}" if tool["trusted"] else ", compared with nothing"
    untold = "that one is trusted since it was first seen" if tool["trusted"] else "approved by nobody"
    say(f"[dim]{since}{against}; {_trusted_by(tool) or untold}[/]")
    for change in tool["differences"]:
        say(f"  [{RANK_STYLES[change['rank']]}]{change['rank']:>11}[/]  {_clean(change['sentence'])}")
        told = all(side and side in change["sentence"] for side in (change["before"], change["after"]))
        for line in () if told else _sides(change["before"], change["after"]):
            say(f"               {line}")
    if not tool["differences"]:
        say("  [dim]nothing differs[/]" if tool["trusted"] else "  [dim]it is the first definition of this tool[/]")
    if advise and (tool["state"] != "trusted" or not tool["approved_by"]):
        say(f"  [dim]approve it with[/] tidegate catalog approve {name} --digest {tool['digest'][:DIGEST_CHARS]}")
    say("")


def _sides(before: str, after: str) -> list[str]:
    """What was and what is; of two texts the words that differ are marked."""
    old, new = visible(before, VALUE_CHARS_MAX), visible(after, VALUE_CHARS_MAX)
    if not old or not new:
        return [
            f"[{style}]{sign} {escape(text)}[/]"
            for sign, style, text in (("-", "red", old), ("+", "green", new))
            if text
        ]
    words, others = old.split(" "), new.split(" ")
    if len(words) + len(others) > WORDS_MAX:
        return [f"[red]- {escape(old)}[/]", f"[green]+ {escape(new)}[/]"]
    blocks = SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
    marked = (
        " ".join(_marked(words[a:b], kind, "red") for kind, a, b, _, _ in blocks if a < b),
        " ".join(_marked(others[c:d], kind, "green") for kind, _, _, c, d in blocks if c < d),
    )
    return [f"[red]-[/] {marked[0]}", f"[green]+[/] {marked[1]}"]


def _marked(words: list[str], kind: str, style: str) -> str:
    text = escape(" ".join(words))
    return f"[dim]{text}[/]" if kind == "equal" else f"[bold {style}]{text}[/]"


def _clean(text: str) -> str:
    return escape(_plainly(text))


def _plainly(text: str) -> str:
    """Where no markup is read."""
    return visible(text, VALUE_CHARS_MAX)


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).strftime("%Y-%m-%d %H:%M:%S") if time_us else ""
