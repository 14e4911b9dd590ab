"""A Locust load test of Tidegate: agents of both eras list tools, call them, and try what they may not do.

Ends with exit code 2 when a threshold breaks, else 0. README.md has the commands; `mcp_user.py` speaks MCP.
"""

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

sys.path.insert(0, str(Path(__file__).parent))

from mcp_user import LegacyClient, McpClient, ModernClient

BROKEN = 2


def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--token", env_var="TIDEGATE_TOKEN", default="", is_secret=True, help="a bearer token")
    parser.add_argument("--path", env_var="TIDEGATE_PATH", default="/mcp", help="of the MCP endpoint; default /mcp")
    parser.add_argument("--tool", env_var="TIDEGATE_TOOL", default="up__echo", help="the tool to call")
    parser.add_argument(
        "--arguments", type=_object, default='{"text": "hello", "path": "/srv/a.md"}', help="its arguments, JSON"
    )
    parser.add_argument("--denied-tool", default="", help="the tool of the call that must be denied; default: --tool")
    parser.add_argument(
        "--denied-arguments",
        type=_object,
        default="{}",
        help="arguments that must be denied; default: no such call, unless --denied-tool is given",
    )
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second of each user; default 5")
    parser.add_argument("--p95-ms", type=float, env_var="TIDEGATE_P95_MS", default=250.0, help="bound on tools/call")
    parser.add_argument(
        "--failure-ratio", type=float, env_var="TIDEGATE_FAILURE_RATIO", default=0.001, help="bound on all requests"
    )
    parser.add_argument("--calls-min", type=int, default=1, help="fewer good calls than this break the test as well")


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ArgumentTypeError("expected a JSON object")
    return found


class Agent(FastHttpUser):
    """What an agent does, whatever its era: mostly calls, sometimes a list, sometimes a call that is refused."""

    abstract = True
    speaks: type[McpClient]

    def wait_time(self) -> float:
        return float(constant_throughput(self.environment.parsed_options.rate)(self))

    def on_start(self) -> None:
        self.options = self.environment.parsed_options
        self.mcp = self.speaks(self.client, self.options.path, self.options.token)
        self.mcp.open()

    def on_stop(self) -> None:
        self.mcp.close()

    @task(8)
    def call(self) -> None:
        self.mcp.call(self.options.tool, self.options.arguments)

    @task(1)
    def denied(self) -> None:
        if self.options.denied_arguments or self.options.denied_tool:
            tool = self.options.denied_tool or self.options.tool
            self.mcp.call(tool, self.options.denied_arguments, expected="denied")

    @task(1)
    def list_tools(self) -> None:
        self.mcp.list_tools()


class ModernAgent(Agent):
    """2026-07-28, without a session."""

    weight = 1
    speaks = ModernClient


class LegacyAgent(Agent):
    """2025-11-25, with a session of its own."""

    weight = 1
    speaks = LegacyClient


def judge(environment: Environment, **_: Any) -> None:
    """Compare what was measured with the thresholds; say which broke; set the exit code."""
    if isinstance(environment.runner, WorkerRunner) or environment.parsed_options is None:
        return
    broken = broken_thresholds(environment)
    for sentence in broken:
        print(f"threshold broken: {sentence}", file=sys.stderr)
    environment.process_exit_code = BROKEN if broken else 0


def broken_thresholds(environment: Environment) -> list[str]:
    """One sentence per threshold that does not hold."""
    options, stats = environment.parsed_options, environment.stats
    assert options is not None
    broken = []
    if stats.total.fail_ratio > options.failure_ratio:
        broken.append(f"{stats.total.fail_ratio:.2%} of all requests failed, bound {options.failure_ratio:.2%}")
    calls = [entry for (name, _), entry in stats.entries.items() if name.endswith("tools/call")]
    good = sum(entry.num_requests - entry.num_failures for entry in calls)
    if good < options.calls_min:
        broken.append(f"{good} good calls, at least {options.calls_min} expected")
    for entry in calls:
        p95_ms = entry.get_response_time_percentile(0.95)
        if p95_ms > options.p95_ms:
            broken.append(f"{entry.name}: p95 {p95_ms:.0f} ms, bound {options.p95_ms:g} ms")
    if environment.runner is not None and environment.runner.exceptions:
        broken.append("the test itself raised exceptions, see above")
    return broken


events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
events.quitting.add_listener(judge)  # type: ignore[no-untyped-call]
