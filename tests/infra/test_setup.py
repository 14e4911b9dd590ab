"""Setting up a clone: the targets of make, where uv comes from, and versions that are the same everywhere."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from tests.infra.deployment import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(pin.split("==") for pin in PROJECT["tool"]["uv"]["constraint-dependencies"])
TOOLS = ("bash", "cut", "dirname", "head", "mkdir", "rm", "sort")


def normal(requirement: str) -> str:
    """The name in a requirement, as an index spells it."""
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A PATH with little more than a shell, and a copy of get-uv that has no uv of its own yet."""
    path = tmp_path / "bin"
    path.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (path / tool).symlink_to(found)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "get-uv", tmp_path / "tools" / "get-uv")
    return tmp_path


def get_uv(machine: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run get-uv there, with these programs on its PATH as shell scripts."""
    for name, script in programs.items():
        (machine / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (machine / "bin" / name).chmod(0o755)
    return subprocess.run(
        [str(machine / "bin" / "bash"), str(machine / "tools" / "get-uv")],
        env={"PATH": str(machine / "bin"), "HOME": str(machine)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_make_alone_lists_every_target_with_a_word_about_it() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    listed = dict(re.findall(r"^  make (\w+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert sorted(listed) == sorted(phony[1].split())


def test_without_python_the_one_command_that_helps_is_said(machine: Path) -> None:
    done = get_uv(machine)
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr
    assert done.stdout == ""


def test_an_old_python_is_refused(machine: Path) -> None:
    done = get_uv(machine, python3="exit 1")  # what Python 3.10 answers to the question for its version
    assert (done.returncode, "needs Python 3.11 or newer" in done.stderr) == (1, True)


def test_a_python_without_venv_and_pip_is_told_what_to_install(machine: Path) -> None:
    done = get_uv(machine, python3='[[ "$*" == *version_info* ]]')
    assert done.returncode == 1
    assert done.stderr.endswith("install: apt-get install python3-venv\n")


def test_a_uv_on_the_path_is_used_when_it_is_new_enough(machine: Path) -> None:
    done = get_uv(machine, python3="exit 0", uv="echo uv 0.10.1")
    assert done.stdout == f"{machine}/bin/uv\n"
    assert done.stderr == ""


def test_an_old_uv_on_the_path_is_passed_over(machine: Path) -> None:
    done = get_uv(machine, python3='[[ "$*" == *version_info* ]]', uv="echo uv 0.4.30")
    assert f"{machine}/bin/uv" not in done.stdout


def test_every_requirement_has_one_pinned_version() -> None:
    groups = [one for group in PROJECT["dependency-groups"].values() for one in group if isinstance(one, str)]
    extras = [one for extra in PROJECT["project"]["optional-dependencies"].values() for one in extra]
    needed = {normal(requirement) for requirement in [*PROJECT["project"]["dependencies"], *groups, *extras]}
    assert needed <= set(PINS)


def test_what_is_installed_here_is_what_is_pinned() -> None:
    installed = {normal(found.name): found.version for found in metadata.distributions()}
    different = {
        name: (version, PINS[name]) for name, version in installed.items() if PINS.get(name, version) != version
    }
    assert different == {}
    assert set(installed) - set(PINS) <= {PROJECT["project"]["name"], "pip", "setuptools", "wheel"}


def test_the_lock_file_is_not_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert "uv.lock" not in tracked.stdout.splitlines()
