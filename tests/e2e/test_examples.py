"""Every example is whole, and what the pages tell people to type works when it is typed, in order, in one shell."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.first_example import ROOT, House, serving

from tidegate.policy.bundle import load_bundle
from tidegate.policy.cases import run_cases
from tidegate.policy.check import check_bundle
from tidegate.settings_file import load_settings
from tidegate_cli import snippets

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "tidegate.yaml").is_file())
OWN = [  # with a gateway of their own: test_policy_examples.py
    path
    for path in EXAMPLES
    if path.name != "01-first-call" and f"TIDEGATE_CONFIG=examples/{path.name}/" in (path / "README.md").read_text()
]
PAGES = (ROOT / "README.md", ROOT / "docs" / "connect.md", *(example / "README.md" for example in EXAMPLES))
OF_THE_FIRST = tuple(page for page in PAGES if page.parent not in OWN)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DONE_BY_THE_FIXTURE = ("make run", "make test", "tidegate up", "python examples/01-first-call/notes_server.py")


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("house")) as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_configuration_is_accepted_and_its_servers_commands_exist(example: Path) -> None:
    settings = load_settings(example / "tidegate.yaml", environment={})
    for name, server in settings.servers.items():
        assert server.url or Path(sys.executable).with_name(server.command[0]).is_file(), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_bundle_has_no_problem_and_cases_for_each_answer(example: Path) -> None:
    bundle = load_bundle(example / "policy")
    assert check_bundle(bundle) == []
    assert {result.verdict.effect for result in run_cases(bundle)} >= {"allow", "deny"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_example_tells_what_it_is(example: Path) -> None:
    assert (example / "README.md").is_file()


@pytest.mark.parametrize("page", OF_THE_FIRST, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_page_says_to_type_works(page: Path, house: House) -> None:
    typed = [line for block in blocks(page, "sh") for line in block.splitlines()]
    script = [line for line in typed if not line.startswith(("claude ", *DONE_BY_THE_FIXTURE))]
    assert script, "a page without anything to type"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=house.root,
        env={**environment, "NOTES_PORT": str(house.notes_port), "TIDEGATE_URL": f"{house.url}/mcp"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert shown.returncode == 0, f"{shown.stdout}\n{shown.stderr}"
    assert '"error"' not in shown.stdout


def test_every_target_of_make_that_the_readme_names_exists() -> None:
    named = re.findall(r"^make (\w+)$", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


def test_the_pages_client_snippets_are_those_that_the_demo_prints() -> None:
    import json

    url = "http://127.0.0.1:8080/mcp"
    shown = [json.loads(text) for text in blocks(ROOT / "docs" / "connect.md", "json")]
    assert json.loads(snippets.cursor(url)) in shown
    assert json.loads(snippets.vs_code(url)) in shown
    command = snippets.claude_code(url, "$TIDEGATE_TOKEN").replace("'", '"')
    for page in (ROOT / "README.md", ROOT / "docs" / "connect.md"):
        assert command in page.read_text()


def test_the_pages_python_client_works(house: House) -> None:
    (program,) = blocks(ROOT / "docs" / "connect.md", "python")
    token = house.run("token", "--user", "alice@example.com", "--agent", "sdk", "--groups", "eng").stdout.strip()
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TIDEGATE_TOKEN": token, "TIDEGATE_URL": f"{house.url}/mcp"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "git__git_log" in shown.stdout
    assert "UTC" in shown.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
