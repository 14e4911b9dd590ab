"""Terraform's provider-free modules are run, all of it is checked for form, and Tidegate reads the settings put out."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.infra.deployment import ROOT

from tidegate.settings_file import load_settings

TERRAFORM = ROOT / "infra" / "terraform"
TESTED = ("modules/naming", "modules/topology", "modules/validation", "environments/example")

pytestmark = pytest.mark.skipif(
    shutil.which("terraform") is None,
    reason="terraform is not on PATH; install 1.9 or newer (HashiCorp's Debian repository has it: package terraform)",
)


def terraform(directory: Path, *arguments: str) -> str:
    """What it prints. Fails the test with its own words."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        ["terraform", *arguments],
        cwd=directory,
        env={**environment, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"terraform {' '.join(arguments)} in {directory}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources elsewhere: what `init` leaves behind stays out of the tree."""
    target = tmp_path_factory.mktemp("terraform") / "terraform"
    shutil.copytree(TERRAFORM, target, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    return target


def test_everything_is_formatted() -> None:
    terraform(TERRAFORM, "fmt", "-check", "-recursive")


@pytest.mark.parametrize("module", TESTED)
def test_a_module_passes_its_own_tests(copy: Path, module: str) -> None:
    terraform(copy / module, "init", "-backend=false", "-input=false", "-no-color")
    terraform(copy / module, "validate", "-no-color")
    assert " 0 failed" in terraform(copy / module, "test", "-no-color")


def test_every_provider_free_module_has_tests() -> None:
    assert {str(path.parents[1].relative_to(TERRAFORM)) for path in TERRAFORM.rglob("*.tftest.hcl")} == set(TESTED)


def test_the_example_puts_out_settings_that_tidegate_accepts(copy: Path, tmp_path: Path) -> None:
    example = copy / "environments" / "example"
    terraform(example, "init", "-input=false", "-no-color")
    terraform(example, "apply", "-auto-approve", "-input=false", "-no-color")
    outputs = json.loads(terraform(example, "output", "-json"))
    for region, text in outputs["settings"]["value"].items():
        file = tmp_path / f"{region}.yaml"
        file.write_text(text)
        settings = load_settings(file, {})
        assert settings.region == region
        assert settings.limits.spool_bytes_max <= outputs["regions"]["value"][region]["spool_gib"] * 1024**3
        assert yaml.safe_load(text)["kafka"]["partitions"] == settings.kafka.partitions


def test_a_region_that_could_lose_the_log_is_refused_before_anything_is_built(copy: Path) -> None:
    example = copy / "environments" / "example"
    terraform(example, "init", "-input=false", "-no-color")
    regions = '{"eu-central-1" = {calls_per_second = 10, zones = 1}}'
    with pytest.raises(AssertionError, match="production needs two or more"):
        terraform(example, "plan", "-input=false", "-no-color", f"-var=regions={regions}")
