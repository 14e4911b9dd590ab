"""The command line by itself: help, tokens, secrets, bundle checks, exit codes. No service runs here."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from tidegate.identity import Principal, Refused, open_verifier
from tidegate.jwks import IssuerKeys
from tidegate.local_issuer import settings_issuer
from tidegate.secrets import open_secrets
from tidegate.settings import Settings
from tidegate.settings_file import load_settings
from tidegate_cli import options, snippets
from tidegate_cli.faults import fault_in

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_POLICY = ROOT / "examples" / "01-first-call" / "policy"


def tidegate(
    *words: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("tidegate")), *words]
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "200", **(environment or {})}
    return subprocess.run(command, cwd=cwd, env=plain, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "tidegate.yaml").write_text("listen: 127.0.0.1:8099\nservers: {time: {command: [mcp-server-time]}}\n")
    return tmp_path


def test_help_names_every_command_and_where_to_begin(tmp_path: Path) -> None:
    shown = tidegate("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for command in (
        *("up", "demo", "edge", "policy", "audit-consumer", "detector", "token", "secrets", "tools", "call"),
        *("log", "why", "bundle", "quarantine", "status", "tidegate up --config"),
    ):
        assert command in shown.stdout, command


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("bundle", "--help"), ("check", "publish", "list", "show", "rollback")),
        (
            ("log", "tail", "--help"),
            ("--user", "--agent", "--tool", "--server", "--decision", "--since", "--no-follow"),
        ),
        (("token", "--help"), ("--user", "--agent", "--groups", "--ttl", "--audience", "--config")),
        (("up", "--help"), ("--config", "--listen", "TIDEGATE_CONFIG")),
    ],
)
def test_help_of_a_command_names_its_parts(words: tuple[str, ...], named: tuple[str, ...], tmp_path: Path) -> None:
    shown = tidegate(*words, cwd=tmp_path).stdout
    assert [name for name in named if name not in shown] == []


async def test_a_token_printed_by_the_command_names_its_principal(house: Path) -> None:
    made = tidegate(
        "token", "--user", "alice@example.com", "--agent", "claude-code", "--groups", "eng,oncall", cwd=house
    )
    assert (made.returncode, made.stderr) == (0, "")
    settings = load_settings(house / "tidegate.yaml")
    principal = await verified(settings, made.stdout.strip())
    assert (principal.login, principal.agent, principal.groups) == (
        "alice@example.com",
        "claude-code",
        ("eng", "oncall"),
    )


async def test_a_token_lives_as_long_and_is_for_whom_it_was_asked(house: Path) -> None:
    words = ("token", "--user", "a", "--agent", "b", "--ttl", "60", "--audience", "https://elsewhere/mcp", "--json")
    made = json.loads(tidegate(*words, cwd=house).stdout)
    assert made["audience"] == ["https://elsewhere/mcp"]
    refused = await refusal(load_settings(house / "tidegate.yaml"), made["token"])
    assert "audience" in refused


async def verified(settings: Settings, token: str) -> Principal:
    found = await _verify(settings, token)
    assert isinstance(found, Principal), found
    return found


async def refusal(settings: Settings, token: str) -> str:
    found = await _verify(settings, token)
    assert isinstance(found, Refused)
    return f"{found.reason} {found.message}"


async def _verify(settings: Settings, token: str) -> Principal | Refused:
    issuers = (settings_issuer(settings),)
    async with IssuerKeys(issuers, Path(settings.root)) as keys:
        verifier = open_verifier(settings, open_secrets(settings), keys, issuers)
        return await verifier.verify(token)


def test_where_the_local_issuer_is_off_no_token_is_made(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("identity: {local_issuer: false}\n")
    refused = tidegate("token", "--user", "a", "--agent", "b", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "identity.local_issuer: true" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listn: 127.0.0.1:1\n", "did you mean 'listen'"),
        ("servers: {Time: {command: [x]}}\n", "a server's name is"),
        ("policy: nowhere\n", "is not a directory"),
        ("log: redis://x\n", "$.log: expected"),
        ("listen: [1]\n", "$.listen"),
        ("listen: 127.0.0.1\n", "listen: '127.0.0.1' is not HOST:PORT"),
        ("listen: 127.0.0.1:99999\n", "listen: '127.0.0.1:99999' is not HOST:PORT"),
        ("listen: '[::1:80'\n", "is not HOST:PORT"),
    ],
)
def test_a_wrong_configuration_is_one_sentence_and_exit_code_2(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text(text)
    refused = tidegate("up", cwd=tmp_path)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_service_by_itself_needs_kafka_and_says_so(house: Path) -> None:
    refused = tidegate("edge", "--config", "tidegate.yaml", cwd=house)
    assert refused.returncode == 2
    assert "kafka://" in refused.stderr
    assert "tidegate up" in refused.stderr


def test_nobody_at_the_address_is_a_failure_that_says_how_to_start(house: Path) -> None:
    failed = tidegate("call", "time__get_current_time", "timezone=UTC", cwd=house)
    assert failed.returncode == 1
    assert "tidegate up" in failed.stderr
    assert failed.stdout == ""


def test_a_word_that_is_no_command_is_exit_code_2(tmp_path: Path) -> None:
    assert tidegate("upp", cwd=tmp_path).returncode == 2


def test_secrets_are_made_once_and_never_replaced(house: Path) -> None:
    assert tidegate("secrets", "init", cwd=house).returncode == 0
    before = (house / "data" / "secrets.json").read_bytes()
    again = tidegate("secrets", "init", cwd=house)
    assert again.returncode == 1
    assert "stays as it is" in again.stderr
    assert (house / "data" / "secrets.json").read_bytes() == before


def test_the_examples_bundle_can_be_released_and_its_cases_are_run(tmp_path: Path) -> None:
    checked = json.loads(tidegate("bundle", "check", str(EXAMPLE_POLICY), "--json", cwd=tmp_path).stdout)
    assert checked["releasable"] is True
    assert checked["problems"] == []
    assert checked["cases"] >= 8


def test_a_bundle_whose_case_no_longer_holds_is_refused_with_file_line_and_note(tmp_path: Path) -> None:
    broken = copied_policy(tmp_path)
    rules = broken / "policies" / "engineering.cedar"
    rules.write_text(rules.read_text().replace('== "data/shop"', '== "data/other"'))
    checked = tidegate("bundle", "check", str(broken), cwd=tmp_path)
    assert checked.returncode == 1
    assert "cases.yaml:" in checked.stdout
    assert "the demo repository may be read" in checked.stdout


def test_a_rule_that_does_not_parse_is_named_with_its_line(tmp_path: Path) -> None:
    broken = copied_policy(tmp_path)
    rules = broken / "policies" / "engineering.cedar"
    rules.write_text(rules.read_text().replace("resource ==", "resource =", 1))
    found = json.loads(tidegate("bundle", "check", str(broken), "--json", cwd=tmp_path).stdout)
    assert found["releasable"] is False
    assert found["problems"][0]["path"] == "policies/engineering.cedar"
    assert found["problems"][0]["line"] > 1


def test_what_is_no_bundle_says_what_a_bundle_is(tmp_path: Path) -> None:
    checked = tidegate("bundle", "check", "nowhere", cwd=tmp_path)
    assert checked.returncode == 1
    assert "wrong  nowhere is not a directory" in checked.stdout
    assert "manifest.json" in checked.stdout


def test_the_directory_above_a_bundle_is_told_in_a_few_lines_which_end_with_the_bundle(tmp_path: Path) -> None:
    bundle = copied_policy(tmp_path / "example")
    for number in range(100):
        (bundle.parent / f"{number}.txt").write_text("no file of a bundle\n")
    checked = tidegate("bundle", "check", "example", cwd=tmp_path)
    assert checked.returncode == 1
    assert len(checked.stdout.splitlines()) < 30
    assert "more; --json lists all" in checked.stdout
    assert checked.stdout.splitlines()[-1] == f"did you mean example/{bundle.name}?"


def copied_policy(directory: Path) -> Path:
    import shutil

    return Path(shutil.copytree(EXAMPLE_POLICY, directory / "policy"))


def test_the_data_directory_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(house: Path) -> None:
    settings = load_settings(house / "tidegate.yaml")
    options.make_data_dir(settings)
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700
    settings.data_dir.chmod(0o750)
    options.make_data_dir(settings)
    assert settings.data_dir.stat().st_mode & 0o777 == 0o750


def test_a_running_up_leaves_the_address_that_tokens_must_name(house: Path) -> None:
    moved = load_settings(house / "tidegate.yaml", listen="127.0.0.1:8111")
    options.write_serving(moved)
    assert options.live_settings(house / "tidegate.yaml").url == "http://127.0.0.1:8111"


def test_an_address_of_a_process_that_has_ended_does_not_count(house: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (house / "data").mkdir()
    stale = options.Serving("127.0.0.1:8111", ended.pid)
    (house / "data" / options.SERVING_FILE).write_bytes(msgspec.json.encode(stale))
    assert options.live_settings(house / "tidegate.yaml").url == "http://127.0.0.1:8099"


def test_snippets_carry_address_and_token_and_are_json_where_they_should_be() -> None:
    url = "http://127.0.0.1:8080/mcp"
    command = snippets.claude_code(url, "T0k")
    assert command == f"claude mcp add --transport http tidegate {url} --header 'Authorization: Bearer T0k'"
    assert json.loads(snippets.cursor(url))["mcpServers"]["tidegate"]["url"] == url
    vs_code = json.loads(snippets.vs_code(url))
    assert vs_code["servers"]["tidegate"]["type"] == "http"
    assert vs_code["inputs"][0]["id"] in vs_code["servers"]["tidegate"]["headers"]["Authorization"]


def test_a_fault_in_a_group_is_found_and_anything_else_in_it_is_not_hidden() -> None:
    from tidegate.errors import ConfigFault

    fault = ConfigFault("wrong")
    assert fault_in(ExceptionGroup("g", [ExceptionGroup("h", [fault])])) is fault
    assert fault_in(ExceptionGroup("g", [fault, ValueError()])) is None
    assert fault_in(ValueError()) is None
