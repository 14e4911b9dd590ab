"""The demo's calls, made by the official MCP SDK's client, and what came of them: answers, rows, a finding.

Two agents: one makes ordinary calls; the other carries text from a sensitive server to one that leads outside, and is
quarantined for it, so that the first stays free.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader
from tidegate.errors import Fault, OurFault
from tidegate.ids import now_us
from tidegate.settings import Settings
from tidegate_cli.calling import DECISION_META, MASK
from tidegate_cli.output import SEVERITY_STYLES, console, lines, plain, say
from tidegate_cli.trust_commands import mint

STORY_TIMEOUT_S = 120.0
FACT_TIMEOUT_S = 30.0
POLL_S = 0.1
FIRST, SECOND = "first-agent", "courier-agent"
SHOWN_CHARS_MAX = 420
RULES_CHARS_MAX = 20
NEWLINE, INDENTED = "\n", "\n           "
T = TypeVar("T")

CALLS_SQL = """
SELECT formatDateTime(requested_at, '%H:%i:%S'), agent, concat(server, '__', target), status, rules, masked,
    total_us
FROM tidegate.calls WHERE requested_at >= fromUnixTimestamp64Micro({since:Int64}) AND agent IN ({agents:Array(String)})
ORDER BY requested_at
"""
FINDINGS_SQL = """
SELECT severity, title, message FROM tidegate.findings
WHERE raised_at >= fromUnixTimestamp64Micro({since:Int64}) AND agent = {agent:String} ORDER BY raised_at
"""


async def tell(settings: Settings) -> None:
    """Raises Fault, MCPError or TimeoutError where the story cannot go on."""
    since_us = now_us()
    reader = open_reader(settings)
    try:
        held = (await reader.query("SELECT count() FROM tidegate.calls")).rows[0][0]
        calls = f"{held} recorded call{'' if held == 1 else 's'}"
        say(f"\nTidegate is ready at {settings.url}. It holds {calls} from before.")
        async with connected(settings, FIRST) as agent:
            made = await ordinary_calls(agent)
        async with connected(settings, SECOND) as agent:
            made += await carry_out_of_the_house(agent, reader, since_us)
        await show_rows(reader, since_us, made)
    finally:
        await reader.close()


def connected(settings: Settings, agent: str) -> Client:
    """The SDK's client, for alice with this agent."""
    token = mint(settings, "alice@example.com", agent, ("eng",), 600, settings.audiences, int(time.time()))
    http = create_mcp_http_client({"Authorization": f"Bearer {token}"})
    return Client(streamable_http_client(f"{settings.url}/mcp", http_client=http))


async def ordinary_calls(agent: Client) -> int:
    """The number of calls made."""
    heading(f"An agent connects ({FIRST}, for alice@example.com, group eng) and asks which tools it has")
    tools = (await agent.list_tools()).tools
    say("  " + "  ".join(f"[cyan]{plain(tool.name)}[/]" for tool in tools))
    say("  [dim]The git server alone has 12 tools; what no rule grants is not listed.[/]")
    heading("A call that the policy allows")
    await show_call(agent, "time__get_current_time", {"timezone": "Europe/Paris"})
    heading("A call refused because of its arguments")
    await show_call(agent, "git__git_log", {"repo_path": "/srv/payroll", "max_count": 3})
    heading("A tool that nobody granted: it does not exist for this agent")
    await show_call(agent, "git__git_reset", {"repo_path": "data/shop"})
    heading("A result with a secret in it: masked before the agent sees it")
    await show_call(agent, "git__git_show", {"repo_path": "data/shop", "revision": "HEAD"})
    return 4


async def carry_out_of_the_house(agent: Client, reader: ClickHouseAnalytics, since_us: int) -> int:
    """The number of calls made."""
    heading(f"Another agent ({SECOND}) reads an internal document and pins it to the public board")
    read = await show_call(agent, "git__git_show", {"repo_path": "data/shop", "revision": "HEAD~1"})
    if not read or not await show_call(agent, "notes__add_note", {"title": "News", "text": read}):
        say("  [dim]The rules are no longer those of the example: nothing is carried out, so nothing is found.[/]")
        return 2 if read else 1
    say("  [dim]Each call was permitted by itself. The detector sees both:[/]")
    found = await awaited("the detector's finding", lambda: _findings(reader, since_us))
    for severity, title, message in found:
        style = SEVERITY_STYLES.get(severity, "white")
        say(f"  [{style}]finding {plain(severity)}[/]  {plain(title)}: {plain(message)}")
    calls = 2

    async def refused() -> CallToolResult | None:
        nonlocal calls
        calls += 1
        result = await agent.call_tool("time__get_current_time", {"timezone": "UTC"})
        return result if decision_of(result).get("reason") == "quarantined" else None

    refusal = await awaited("the quarantine", refused)
    heading("From now on this session is refused everything")
    say("  [bold]time__get_current_time[/] timezone=UTC")
    show_answer(refusal)
    return calls


async def show_rows(reader: ClickHouseAnalytics, since_us: int, made: int) -> None:
    from rich.table import Table

    heading("What ClickHouse now holds (tidegate.calls)")

    async def rows() -> list[tuple[Any, ...]]:
        answer = await reader.query(CALLS_SQL, {"since": since_us, "agents": [FIRST, SECOND]})
        done = [row for row in answer.rows if row[3] != "pending"]
        return done if len(done) >= made else []

    table = Table(
        "time", "agent", "tool", "status", "rules", "masked", "ms", box=None, header_style="bold", pad_edge=False
    )
    for when, agent, tool, status, rules, masked, total_us in await awaited("the rows of all calls", rows):
        style = {"ok": "green", "denied": "red"}.get(status, "yellow")
        why = plain(_shortened(", ".join(rules), RULES_CHARS_MAX))
        took = f"{total_us / 1000:.1f}" if total_us else ""
        table.add_row(
            when, agent, f"[cyan]{plain(tool)}[/]", f"[{style}]{plain(status)}[/]", why, str(masked or ""), took
        )
    console().print(table)


async def show_call(agent: Client, tool: str, arguments: dict[str, Any]) -> str:
    """Make the call, show what the agent got, and hand back its text; "" where it was refused."""
    told = " ".join(f"{key}={_shortened(str(value), 40)}" for key, value in arguments.items())
    say(f"  [bold]{plain(tool)}[/] {plain(told)}")
    try:
        result = await agent.call_tool(tool, arguments)
    except MCPError as error:
        say(f"  [red]refused[/]  {plain(error.error.message)}")
        return ""
    return show_answer(result)


def show_answer(result: CallToolResult) -> str:
    """The text; "" of a refusal."""
    text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
    if decision := decision_of(result):
        say(f"  [red]refused[/]  {lines(text)}")
        say(f"           {plain(facts_of(decision))}")
        return ""
    word, style = ("failed", "yellow") if result.is_error else ("allowed", "green")
    say(f"  [{style}]{word}[/]  {_marked(_shortened(text.strip(), SHOWN_CHARS_MAX)).replace(NEWLINE, INDENTED)}")
    return text


def facts_of(decision: dict[str, Any]) -> str:
    """`reason … · rule … · decision …`"""
    rules = ", ".join(decision.get("rules", ())) or "none"
    return f"reason {decision.get('reason', '')} · rule {rules} · decision {decision.get('id', '')}"


def decision_of(result: CallToolResult) -> dict[str, Any]:
    """The gateway's own words in a denial; {} in a server's answer."""
    return dict((result.meta or {}).get(DECISION_META) or {})


def heading(text: str) -> None:
    say(f"\n[bold]── {plain(text)}[/]\n")


async def awaited(what: str, fact: Callable[[], Awaitable[T | None]]) -> T:
    """The fact, once it is there. Raises OurFault past the deadline."""
    deadline = time.monotonic() + FACT_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if found := await fact():
                return found
        except Fault:  # the analytics may answer a moment later
            pass
        await asyncio.sleep(POLL_S)
    raise OurFault(f"{what} did not come within {FACT_TIMEOUT_S:.0f} s; the log lines above may say why")


async def _findings(reader: ClickHouseAnalytics, since_us: int) -> list[tuple[str, str, str]]:
    answer = await reader.query(FINDINGS_SQL, {"since": since_us, "agent": SECOND})
    return [(str(row[0]), str(row[1]), str(row[2])) for row in answer.rows]


def _shortened(text: str, chars_max: int) -> str:
    line = text if chars_max > 100 else text.replace("\n", " ")
    return line if len(line) <= chars_max else f"{line[:chars_max].rstrip()} …"


def _marked(text: str) -> str:
    """Foreign text in which the masks stand out."""
    parts: list[str] = []
    at = 0
    for mask in MASK.finditer(text):
        parts += [lines(text[at : mask.start()]), f"[bold magenta]{plain(mask[0])}[/]"]
        at = mask.end()
    return "".join([*parts, lines(text[at:])])
