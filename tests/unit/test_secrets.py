"""The cluster's secrets: made once, private, never printed, apart for every tenant."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidegate.errors import ConfigFault
from tidegate.secrets import ClusterSecrets, create_secrets, load_secrets, open_secrets, secrets_path, write_private
from tidegate.settings import Settings


def local(directory: Path) -> Settings:
    return Settings(root=str(directory))


def test_local_mode_makes_the_file_once_and_private(tmp_path: Path) -> None:
    first = open_secrets(local(tmp_path))
    path = secrets_path(local(tmp_path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secrets.json"]
    assert open_secrets(local(tmp_path)).encode() == first.encode()


def test_a_cluster_without_the_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="tidegate secrets init --config") as caught:
        open_secrets(Settings(root=str(tmp_path), log="kafka://k:9092"))
    assert "every edge the same file" in caught.value.sentence
    assert not (tmp_path / "data").exists()


def test_the_configured_path_is_used(tmp_path: Path) -> None:
    create_secrets(tmp_path / "shared" / "s.json")
    settings = Settings(root=str(tmp_path), log="kafka://k:9092", secrets_file="shared/s.json")
    assert open_secrets(settings).pepper("t") == load_secrets(tmp_path / "shared" / "s.json").pepper("t")


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    with ThreadPoolExecutor(8) as pool:
        found = {secrets.encode() for secrets in pool.map(lambda _: create_secrets(path), range(16))}
    assert found == {path.read_bytes()}
    assert os.listdir(tmp_path) == ["secrets.json"]


def test_a_private_file_is_never_replaced(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"first")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"


def test_nothing_secret_is_printed() -> None:
    secrets = ClusterSecrets.generate()
    content = json.loads(secrets.encode())
    hidden = [content["pepper"], content["fingerprint"], content["sealing"][0]["key"]]
    shown = f"{secrets!r} {secrets} {secrets.sealing_keys!r} {[secrets]}"
    assert not any(value in shown for value in hidden)
    assert str(secrets.sealing_keys[0].key) not in shown
    assert content["sealing"][0]["kid"] in shown


def test_every_tenant_and_use_has_a_key_of_its_own() -> None:
    secrets = ClusterSecrets.generate()
    keys = [secrets.pepper("a"), secrets.pepper("b"), secrets.fingerprint_key("a"), secrets.fingerprint_key("b")]
    assert len(set(keys)) == 4
    assert ClusterSecrets.decode(secrets.encode(), "x").pepper("a") == secrets.pepper("a")


def test_a_rotation_never_leaves_an_edge_unable_to_open(tmp_path: Path) -> None:
    start = ClusterSecrets.generate()
    spare = start.with_spare_key()
    turned = spare.with_last_key_first()
    for sealing, opening in [(start, spare), (spare, start), (spare, turned), (turned, spare)]:
        assert opening.sealer().unseal("s", sealing.sealer().seal("s", b"x", b"o"), b"o") == b"x"
    assert turned.sealing_keys[0] != start.sealing_keys[0]
    assert turned.pepper("t") == start.pepper("t")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a secrets file"),
        (b"[]", "is not a secrets file"),
        (b'{"pepper": "x"}', "is not a secrets file"),
        (b'{"pepper": "!", "fingerprint": "", "sealing": []}', "not valid hex or base64"),
        (b'{"pepper": "", "fingerprint": "", "sealing": []}', "32 bytes each"),
        (b'{"v": 2, "pepper": "", "fingerprint": "", "sealing": []}', "newer"),
        (b" " * 70_000, "larger than"),
    ],
)
def test_a_broken_file_is_refused_with_its_path(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "secrets.json"
    write_private(path, content)
    with pytest.raises(ConfigFault, match=says) as caught:
        load_secrets(path)
    assert str(path) in caught.value.sentence


def test_a_fault_never_quotes_a_key(tmp_path: Path) -> None:
    content = json.loads(ClusterSecrets.generate().encode())
    content["sealing"] *= 2
    with pytest.raises(ConfigFault, match="same kid") as caught:
        ClusterSecrets.decode(json.dumps(content).encode(), "secrets.json")
    assert content["pepper"] not in caught.value.sentence


def test_a_file_open_to_everybody_is_refused(tmp_path: Path) -> None:
    create_secrets(tmp_path / "secrets.json")
    (tmp_path / "secrets.json").chmod(0o644)
    with pytest.raises(ConfigFault, match="chmod 600"):
        load_secrets(tmp_path / "secrets.json")
