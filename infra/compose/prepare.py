"""Makes what the compose cluster shares and nobody may commit: secrets, the keys that sign bundles and roots, the
master of people's keys, the trial issuer's key, data directories, and `.env`. Run it again at will: what exists stays.

    uv run python infra/compose/prepare.py
"""

import argparse
import os
import secrets
from pathlib import Path

from tidegate.local_issuer import LocalIssuer
from tidegate.policy.signing import ensure_signing_key
from tidegate.privacy.master import create_master
from tidegate.secrets import create_secrets

HERE = Path(__file__).resolve().parent
PUBLIC_URL = "http://localhost:8080"  # as in tidegate.yaml
IMAGE_USER = 10001
DATA_OF = ("edge-1", "edge-2", "policy", "audit-consumer", "detector")


def prepare(directory: Path) -> Path:
    """Fill `directory` (beside compose.yaml, in earnest); returns the path of its `.env`."""
    state = directory / "state"
    for name in DATA_OF:  # the mount points of the trial issuer's keys are below them
        (state / name / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (state / "secrets" / "secrets.json").exists():
        create_secrets(state / "secrets" / "secrets.json")
    bundle_key = ensure_signing_key(state / "signing" / "bundles.pem").public
    audit_key = ensure_signing_key(state / "audit" / "roots.pem").public
    if not (state / "privacy" / "privacy.key").exists():
        create_master(state / "privacy" / "privacy.key")
    LocalIssuer.open(state, PUBLIC_URL)
    environment = directory / ".env"
    if not environment.exists():
        user, group = _owner(state)
        lines = (
            f"TIDEGATE_UID={user}",
            f"TIDEGATE_GID={group}",
            f"TIDEGATE_BUNDLE_KEY={bundle_key}",
            f"TIDEGATE_AUDIT_KEY={audit_key}",
            f"TIDEGATE_CLICKHOUSE_PASSWORD={secrets.token_urlsafe(24)}",
        )
        environment.touch(mode=0o600)
        environment.write_text("\n".join(lines) + "\n")
    return environment


def _owner(state: Path) -> tuple[int, int]:
    """Whom the containers run as: who prepares. Root gives the files to the images' own user instead."""
    if os.getuid() != 0:
        return os.getuid(), os.getgid()
    for path in (state, *state.rglob("*")):
        os.chown(path, IMAGE_USER, IMAGE_USER)
    return IMAGE_USER, IMAGE_USER


def main() -> None:
    """Prepare beside compose.yaml and say what to do next."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None)
    parser.add_argument("--directory", type=Path, default=HERE, help="where compose.yaml is")
    environment = prepare(parser.parse_args().directory.resolve())
    print(
        f"Made {environment} and {environment.parent / 'state'}. Next: docker compose -f infra/compose/compose.yaml up"
    )


if __name__ == "__main__":
    main()
