"""`tidegate demo`: what the first example needs around it, its story once all is ready, the addresses after it.

Counterparts: `demo_story.py` makes the calls and shows them; examples/01-first-call has configuration and policy.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tidegate.errors import ConfigFault
from tidegate.settings import Settings
from tidegate_cli import demo_story, snippets
from tidegate_cli.faults import fault_in
from tidegate_cli.options import make_data_dir
from tidegate_cli.output import plain, say
from tidegate_cli.trust_commands import mint

SERVERS = ("time", "git", "notes")
NOTES_PORT = 8090
USER_TOKEN_TTL_S = 8 * 3600
STOP_S = 5.0

_log = logging.getLogger(__name__)

PLAN = """# Pricing plan, internal

From the first of March the shop moves to three tiers. Small customers keep today's price for twelve months,
medium customers pay eleven percent more, and large customers get a contract of their own with a floor of
forty-two thousand a year. Nobody outside the pricing group is told before the board has met.
"""
ENVIRONMENT = """PAYMENT_PROVIDER=sandbox
AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE
AWS_REGION=eu-central-1
"""
COMMITS = (
    ("pricing.md", PLAN, "Write down the pricing plan"),
    ("payment.env", ENVIRONMENT, "Add the payment settings"),
)


class Demo:
    """The first example, with an agent in it. Raises ConfigFault where the configuration is another one."""

    def __init__(self, settings: Settings, config: Path) -> None:
        self._config = config
        self._notes_server = settings.path("notes_server.py")
        if missing := [name for name in SERVERS if name not in settings.servers]:
            raise ConfigFault(
                f"{config} has no server '{missing[0]}': the demo tells the story of the first example; "
                "run it with --config examples/01-first-call/tidegate.yaml"
            )
        if not self._notes_server.is_file():
            raise ConfigFault(f"{self._notes_server} does not exist; copy the whole directory of the example")
        make_data_dir(settings)
        prepare_repository(settings.path("data/shop"))

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """The notes server runs while this is open; it ends with this process, whatever ends that."""
        command = [sys.executable, str(self._notes_server), "--port", os.environ["NOTES_PORT"], "--end-with-stdin"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as notes:
            try:
                yield
            finally:
                notes.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    notes.wait(STOP_S)
                notes.kill()

    async def tell(self, settings: Settings) -> None:
        """Show the first calls, then how to connect. A story that breaks off is told as that; the services go on."""
        try:
            async with asyncio.timeout(demo_story.STORY_TIMEOUT_S):
                await demo_story.tell(settings)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the end of a task of its own: what breaks here must not end the services
            fault = fault_in(error)
            if fault is None:
                _log.exception("the demo broke off")
            told = "see above" if fault is None else fault.sentence
            say(f"\n[yellow]The demo broke off:[/] {plain(told)}. Tidegate goes on.")
        self._show_ways_in(settings)

    def _show_ways_in(self, settings: Settings) -> None:
        url = f"{settings.url}/mcp"
        token = mint(
            settings,
            "alice@example.com",
            "claude-code",
            ("eng",),
            USER_TOKEN_TTL_S,
            settings.audiences,
            int(time.time()),
        )
        config = f" --config {self._config}"
        say("\n[bold]── Now with your own agent[/]\n")
        say(f"MCP    [cyan]{url}[/]")
        say(f"token  for alice@example.com with claude-code, group eng, {USER_TOKEN_TTL_S // 3600} hours:")
        print_raw(token + "\n")
        say("[bold]Claude Code[/]")
        print_raw(snippets.claude_code(url, token))
        say("\n[bold]Cursor[/]  .cursor/mcp.json, with the token in TIDEGATE_TOKEN")
        print_raw(snippets.cursor(url))
        say("\n[bold]VS Code[/]  .vscode/mcp.json; it asks for the token")
        print_raw(snippets.vs_code(url))
        say("\n[bold]From another terminal[/]")
        say(f"{_command()} call git__git_log repo_path=data/shop --groups eng{config}")
        say(f"{_command()} log tail{config}")
        say("\n[bold]Tidegate stays up; Ctrl-C drains and stops.[/]")


def _command() -> str:
    """This command as the next terminal finds it: below this directory, or as it was started."""
    started = Path(sys.argv[0])
    return os.path.relpath(started) if started.resolve().is_relative_to(Path.cwd()) else str(started)


def print_raw(text: str) -> None:
    """As it is: brackets are not markup, lines are not wrapped."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def choose_notes_port() -> None:
    """NOTES_PORT as set, else the usual port where it is free, else any free one."""
    if "NOTES_PORT" in os.environ:
        return
    for port in (NOTES_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            os.environ["NOTES_PORT"] = str(probe.getsockname()[1])
            return


def prepare_repository(path: Path) -> None:
    """A small repository with an internal document and, in its last commit, a key (AWS's own example of one)."""
    if (path / ".git").is_dir():
        return
    path.mkdir(parents=True, exist_ok=True)
    _git(path, "init", "--quiet", "--initial-branch=main")
    for file, text, message in COMMITS:
        (path / file).write_text(text, encoding="utf-8")
        _git(path, "add", file)
        _git(path, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message", message)


def _git(path: Path, *command: str) -> None:
    identity = {"NAME": "Demo", "EMAIL": "demo@example.com"}
    person = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in identity.items()}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        subprocess.run(["git", "-C", str(path), *command], env=environment | person, check=True, capture_output=True)
    except FileNotFoundError:
        raise ConfigFault("git is not installed; the demo's repository needs it (apt install git)") from None
    except subprocess.CalledProcessError as error:
        raise ConfigFault(
            f"git {command[0]} failed in {path}: {error.stderr.decode(errors='replace').strip()}"
        ) from error
