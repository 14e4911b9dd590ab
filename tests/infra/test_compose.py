"""The compose cluster, read as data: names, ports, mounts and variables agree with each other and with our settings."""

import os
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from infra.compose.prepare import DATA_OF, PUBLIC_URL, prepare
from tests.infra.deployment import COMPOSE, ROOT, built, compose, environment_file, variables

from tidegate.local_issuer import issuer_name
from tidegate.policy.signing import load_signing_key, trusted_keys
from tidegate.secrets import open_secrets
from tidegate.settings import Settings, host_port
from tidegate.settings_file import load_settings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compose")
    (directory / "tidegate.yaml").write_text((COMPOSE / "tidegate.yaml").read_text())
    prepare(directory)
    return directory


@pytest.fixture(scope="module")
def settings(prepared: Path) -> Settings:
    return load_settings(prepared / "tidegate.yaml", environment_file(prepared / ".env"))


def test_the_configuration_is_accepted_with_the_prepared_environment(settings: Settings) -> None:
    assert not settings.is_local
    assert settings.url == PUBLIC_URL


def test_the_prepared_keys_belong_together(settings: Settings) -> None:
    key = load_signing_key(settings.path(settings.signing.key_file))
    assert key.key_id in trusted_keys(settings.trust.bundle_keys)
    assert open_secrets(settings).sealing_keys


def test_a_token_made_on_the_machine_is_one_that_the_edges_trust(prepared: Path, settings: Settings) -> None:
    environment = {**os.environ, **environment_file(prepared / ".env"), "TIDEGATE_DATA": "state"}
    who = ["--user", "alice@example.com", "--agent", "claude-code", "--groups", "eng"]
    command = [sys.executable, "-m", "tidegate_cli.main", "token", "--config", str(prepared / "tidegate.yaml"), *who]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    keys = jwt.PyJWKSet.from_json((prepared / "state/keys/local-issuer.jwks.json").read_text())
    claims = jwt.decode(made.stdout.strip(), keys.keys[0], ["RS256"], audience=f"{PUBLIC_URL}/mcp")
    assert claims["iss"] == issuer_name(settings.url)


def test_preparing_again_changes_nothing(prepared: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()}

    before = contents()
    prepare(prepared)
    assert contents() == before


def test_private_files_are_for_their_owner_alone(prepared: Path) -> None:
    private = [prepared / ".env", prepared / "state/secrets/secrets.json", prepared / "state/signing/bundles.pem"]
    assert [path for path in private if path.stat().st_mode & 0o077] == []


def test_every_variable_is_prepared_or_has_a_default(prepared: Path) -> None:
    known = set(environment_file(prepared / ".env"))
    needed, _ = variables((COMPOSE / "compose.yaml").read_text())
    assert needed == known
    needed, optional = variables((COMPOSE / "tidegate.yaml").read_text())
    for name, service in built().items():
        given = set(service["environment"])
        assert needed <= given, name
        assert given <= needed | optional, name


def test_addresses_in_the_configuration_are_services_here(settings: Settings) -> None:
    services = compose()["services"]
    kafka = services["kafka"]["environment"]
    assert f"PLAINTEXT://{settings.kafka_bootstrap}" == kafka["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.kafka_bootstrap.partition(":")[0] in services
    assert host_port(settings.sessions.removeprefix("redis://").removesuffix("/0"))[0] in services
    assert host_port(settings.analytics.removeprefix("clickhouse://").partition("/")[0])[0] in services
    user = settings.analytics.removeprefix("clickhouse://").partition("@")[0]
    assert services["clickhouse"]["environment"]["CLICKHOUSE_USER"] == user


def test_published_ports_lead_to_the_port_that_the_service_listens_on(settings: Settings) -> None:
    listening = {"edge": settings.listen, "policy": settings.services.policy.listen}
    for name, service in built().items():
        for published in service.get("ports", []):
            address, outside, inside = published.split(":")
            assert address == "127.0.0.1"
            kind = "edge" if name.startswith("edge") else name
            assert int(inside) == host_port(listening[kind])[1], name
            if kind == "edge":
                assert f"localhost:{outside}" in settings.allowed_hosts


def test_one_kafka_node_is_asked_for_one_copy(settings: Settings) -> None:
    assert (settings.kafka.replication, settings.kafka.min_insync) == (1, 1)


def test_a_service_waits_for_parts_that_have_a_health_check() -> None:
    services = compose()["services"]
    for name, service in built().items():
        for needed, how in service["depends_on"].items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in services[needed], needed


def test_a_stop_is_given_more_time_than_a_drain_takes(settings: Settings) -> None:
    for service in built().values():
        assert float(service["stop_grace_period"].removesuffix("s")) > settings.limits.drain_timeout_s


def test_mounted_files_exist_and_no_two_services_share_a_data_directory(prepared: Path, settings: Settings) -> None:
    owners: list[str] = []
    for service in built().values():
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            assert (prepared / source).exists(), volume
            if target == str(settings.data_dir):
                owners.append(source)
    assert sorted(owners) == sorted(f"./state/{name}" for name in DATA_OF)


def test_only_the_policy_service_is_given_the_signing_key() -> None:
    assert [name for name, service in built().items() if "signing" in str(service["volumes"])] == ["policy"]


def test_the_services_are_confined() -> None:
    for name, service in built().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].startswith("${TIDEGATE_UID"), name


def test_images_are_pinned_and_clickhouse_is_the_embedded_engines_release() -> None:
    images = {name: service["image"] for name, service in compose()["services"].items()}
    assert [image for image in images.values() if ":" not in image or image.endswith(":latest")] == []
    engine = images["clickhouse"].partition(":")[2]
    assert f'"chdb-core-lite=={engine}.' in (ROOT / "pyproject.toml").read_text()


def test_dockerfiles_that_are_named_exist() -> None:
    for service in built().values():
        assert (COMPOSE / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_root_gives_the_files_to_the_images_user(prepared: Path) -> None:
    assert (prepared / "state/secrets/secrets.json").stat().st_uid == int(
        environment_file(prepared / ".env")["TIDEGATE_UID"]
    )
