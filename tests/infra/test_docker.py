"""The Dockerfiles, read as text: no container engine is needed, and none of this shows that they build."""

import json
import tomllib
from fnmatch import fnmatch

import pytest
from tests.infra.deployment import ROOT, SERVICES, Dockerfile, dockerfile

from tidegate.settings import Settings, host_port

PORTS = {
    "edge": host_port(Settings().listen)[1],
    "policy": host_port(Settings().services.policy.listen)[1],
    "audit-consumer": host_port(Settings().services.audit_consumer.listen)[1],
    "detector": host_port(Settings().services.detector.listen)[1],
}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def file(service: str) -> Dockerfile:
    return dockerfile(service)


def test_every_service_folder_has_a_dockerfile() -> None:
    folders = {path.name for path in (ROOT / "services").iterdir() if path.is_dir()}
    assert {path.name.partition(".")[0] for path in (ROOT / "infra" / "docker").glob("*.Dockerfile")} == folders


def test_what_is_copied_exists_and_is_let_into_the_build(file: Dockerfile) -> None:
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in file.copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in admitted), source


def test_the_build_holds_every_package_that_the_wheel_is_made_of(file: Dockerfile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {package.partition("/")[0] for package in packages}
    needed |= {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed <= set(file.copied())


def test_the_image_runs_its_service_as_an_unprivileged_user(service: str, file: Dockerfile) -> None:
    assert json.loads(file.all("ENTRYPOINT")[0])[:2] == ["tidegate", service]
    assert file.all("USER") == ["10001:10001"]
    assert file.all("STOPSIGNAL") == ["SIGTERM"]


def test_the_health_check_asks_the_port_that_the_service_listens_on(service: str, file: Dockerfile) -> None:
    assert file.all("EXPOSE") == [str(PORTS[service])]
    assert f"http://127.0.0.1:{PORTS[service]}/healthz" in file.all("HEALTHCHECK")[0]


def test_bases_and_tools_are_pinned(file: Dockerfile) -> None:
    for base in file.all("FROM"):
        tag = base.partition(":")[2].partition(" ")[0]
        assert tag.count(".") == 2, base
    assert any("uv==" in step for step in file.all("RUN"))
