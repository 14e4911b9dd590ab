"""Settings of the circumstances that rules may look at: what is refused, and in which words."""

from pathlib import Path

import pytest
import yaml

from tidegate.errors import ConfigFault
from tidegate.settings_file import load_settings


def written(directory: Path, **keys: object) -> Path:
    file = directory / "tidegate.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def test_proxies_are_addresses_and_networks_of_both_versions(tmp_path: Path) -> None:
    given = ["10.1.2.3", "10.2.0.0/16", "2001:db8::/48", "::1"]
    settings = load_settings(written(tmp_path, trusted_proxies=given, forwarded_header="forwarded"))
    assert settings.trusted_proxies == tuple(given)
    assert load_settings(written(tmp_path)).trusted_proxies == ()
    assert load_settings(written(tmp_path)).forwarded_header == "x-forwarded-for"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"trusted_proxies": ["10.1.2.3", "proxy.example"]}, r"\$\.trusted_proxies\[1\]: expected an address"),
        ({"trusted_proxies": ["10.1.2.3/16"]}, r"\$\.trusted_proxies\[0\].*has host bits set"),
        ({"trusted_proxies": [""]}, r"\$\.trusted_proxies\[0\]"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "is everybody"),
        ({"trusted_proxies": ["::/0"]}, "is everybody"),
        ({"forwarded_header": "x-real-ip"}, r"\$\.forwarded_header"),
        ({"taint_labels": ["a/b"]}, r"\$\.taint_labels\[0\]: expected a label"),
        ({"taint_labels": ["fine", ""]}, r"\$\.taint_labels\[1\]: expected a label"),
        ({"taint_labels": ["x" * 65]}, r"\$\.taint_labels\[0\]: expected a label"),
        ({"taint_labels": [f"l{number}" for number in range(17)]}, r"\$\.taint_labels: at most 16"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path: Path, keys: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigFault, match=told):
        load_settings(written(tmp_path, **keys))
