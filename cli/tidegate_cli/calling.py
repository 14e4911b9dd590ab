"""The work of `tidegate tools` and `tidegate call`: arguments typed by the tool's schema, and answers told in words."""

import difflib
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidegate.errors import ConfigFault
from tidegate_cli.gateway import Gateway, NotServed
from tidegate_cli.options import live_settings, names_of
from tidegate_cli.output import lines, plain, print_document, say
from tidegate_cli.trust_commands import mint

TOKEN_TTL_S = 300
MASK = re.compile(r"\[masked:([a-z0-9-]+)\]")
DECISION_META = "tidegate/decision"
INVALID_PARAMS = -32602


class Caller(NamedTuple):
    """Who calls, and where; `token` and `url` win over what would be made from the configuration."""

    config: Path
    user: str
    agent: str
    groups: tuple[str, ...]
    token: str = ""
    url: str = ""

    def gateway(self) -> Gateway:
        """Raises ConfigFault."""
        if self.token and self.url:
            return Gateway(self.url, self.token, 130.0)
        settings = live_settings(self.config)
        token = self.token or mint(
            settings,
            self.user,
            self.agent,
            names_of(list(self.groups)),
            TOKEN_TTL_S,
            settings.audiences,
            int(time.time()),
        )
        return Gateway(self.url or f"{settings.url}/mcp", token, settings.limits.call_timeout_s + 10)


def show_tools(caller: Caller, as_json: bool) -> None:
    found = caller.gateway().tools()
    if as_json:
        print_document(found)
        return
    if not found:
        say("No tool is granted. `tidegate bundle show --current` shows the rules; is a group missing (--groups)?")
        return
    from rich.table import Table

    from tidegate_cli.output import console

    table = Table("tool", "arguments", "what it does", box=None, header_style="bold", pad_edge=False)
    for tool in found:
        schema = tool.get("inputSchema", {})
        required = set(schema.get("required", ()))
        names = ", ".join(name if name in required else f"[{name}]" for name in schema.get("properties", {}))
        first_line = str(tool.get("description", "")).strip().partition("\n")[0]
        table.add_row(f"[cyan]{plain(tool['name'])}[/]", plain(names), plain(first_line))
    console().print(table)


def make_call(caller: Caller, tool: str, values: list[str], args: str, as_json: bool) -> int:
    """The exit code."""
    gateway = caller.gateway()
    arguments = read_arguments(args) if args else {}
    if values:
        arguments |= typed_arguments(values, _schema(gateway, tool))
    try:
        result = gateway.call(tool, arguments)
    except NotServed as refused:
        if as_json:
            print_document({"error": {"code": refused.rpc_code, "message": refused.sentence, "status": refused.status}})
        else:
            say(f"[red]refused[/]  {plain(refused.sentence)}")
            if refused.rpc_code == INVALID_PARAMS:
                _show_known(gateway, tool)
        return 1
    if as_json:
        print_document(result)
    else:
        show_result(result)
    return 1 if result.get("isError") else 0


def _schema(gateway: Gateway, tool: str) -> dict[str, Any]:
    """{} where it is not listed: what is said of the call tells why."""
    try:
        return next((found.get("inputSchema", {}) for found in gateway.tools() if found["name"] == tool), {})
    except NotServed:
        return {}


def _show_known(gateway: Gateway, tool: str) -> None:
    """After a tool that is not there for this caller: the name that may have been meant."""
    names = [str(found["name"]) for found in gateway.tools()]
    if tool in names:
        return
    whole = [name for name in names if name.endswith(f"__{tool}")]
    meant = whole or difflib.get_close_matches(tool, names, n=1, cutoff=0.9)
    hint = f"did you mean {meant[0]}? " if meant else ""
    say(f"         {plain(hint)}`tidegate tools` lists what this caller may call, with the same --user and --groups")


def read_arguments(text: str) -> dict[str, Any]:
    """Raises ConfigFault: a wrong use of the command."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigFault(
            f'--args is not a JSON object ({error}); write for example --args \'{{"timezone": "UTC"}}\''
        ) from None


def typed_arguments(values: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    """`key=value` pairs as the schema's properties type them: text stays text, all else is read as JSON."""
    found: dict[str, Any] = {}
    for given in values:
        key, equals, value = given.partition("=")
        if not equals or not key:
            raise ConfigFault(f"'{given}' is not KEY=VALUE; write for example timezone=UTC, or use --args JSON")
        found[key] = _typed(key, value, schema.get("properties", {}).get(key, {}))
    return found


def _typed(key: str, value: str, schema: dict[str, Any]) -> Any:
    kinds = _kinds(schema)
    if "string" in kinds or not kinds:
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        raise ConfigFault(f"{key} takes {' or '.join(sorted(kinds))}, and '{value}' is not JSON for that") from None


def _kinds(schema: dict[str, Any]) -> set[str]:
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _kinds(branch)
    return found


def show_result(result: dict[str, Any]) -> None:
    """A result, a tool's own error, or a denial with rule, reason and the decision's id."""
    texts = [str(part.get("text", f"({part.get('type')})")) for part in result.get("content", ())]
    decision = result.get("_meta", {}).get(DECISION_META)
    if decision is not None:
        _show_denial(texts, decision)
        return
    if result.get("isError"):
        say("[yellow]the tool failed[/]")
    for text in texts:
        say(lines(text))
    if not texts and "structuredContent" in result:
        print_document(result["structuredContent"])
    if masks := MASK.findall("\n".join(texts)):
        names = ", ".join(dict.fromkeys(masks))
        say(f"[magenta]masked[/]  {len(masks)} value{'s' if len(masks) > 1 else ''} kept from you by {names}")


def _show_denial(texts: list[str], decision: dict[str, Any]) -> None:
    word, style = (
        ("waits for approval", "yellow") if decision.get("reason") == "approval-required" else ("refused", "red")
    )
    say(f"[{style}]{word}[/]  {plain(' '.join(texts))}")
    rules = ", ".join(decision.get("rules", ())) or "none that permits it"
    stage, reason = plain(decision.get("stage", "")), plain(decision.get("reason", ""))
    say(f"         stage   {stage} · reason {reason} · rule {plain(rules)}")
    if found := decision.get("id"):
        say(f"         why     tidegate why {plain(found)}")
