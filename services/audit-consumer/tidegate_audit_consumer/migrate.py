"""Brings the database to this version: numbered SQL files, each applied once and recorded in `tidegate.migrations`.

Statements are written so that a migration that was cut off half-way can run again (`IF NOT EXISTS`). Files under
`migrations/server` are an administrator's: accounts and row policies, which the embedded engine does not have.
"""

import hashlib
import re
from importlib import resources
from typing import NamedTuple

from tidegate.analytics.port import DATABASE, Analytics
from tidegate.errors import ConfigFault


class Migration(NamedTuple):
    number: int
    name: str
    digest: str
    statements: tuple[str, ...]


def migrations(folder: str = "migrations") -> list[Migration]:
    """The files shipped with this version, by number. Server-only ones: `migrations/server`."""
    directory = resources.files(__package__).joinpath(*folder.split("/"))
    files = sorted((file for file in directory.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [_parse(file.name, file.read_text()) for file in files]


async def migrate(analytics: Analytics) -> list[str]:
    """Apply what is missing; the names of what was applied. Raises ConfigFault if the database was made from other
    files.
    """
    await analytics.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    await analytics.execute(
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.migrations (number UInt32 COMMENT 'Number of the migration', "
        "name String COMMENT 'Its file', digest String COMMENT 'SHA-256, hex, of the file as applied', "
        "applied_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When it was applied') "
        "ENGINE = ReplacingMergeTree ORDER BY number COMMENT 'Migrations applied'"
    )
    recorded = await analytics.query("SELECT number, digest FROM tidegate.migrations FINAL")
    done: dict[int, str] = dict(recorded.rows)
    applied = []
    for migration in migrations():
        if migration.number not in done:
            await _apply(analytics, migration)
            applied.append(migration.name)
        elif done[migration.number] != migration.digest:
            raise ConfigFault(
                f"the database applied another {migration.name} than this version ships; run the version that made it, "
                "or start with an empty database and replay the log from the start"
            )
    if unknown := sorted(done.keys() - {migration.number for migration in migrations()}):
        raise ConfigFault(
            f"the database is newer than this version (migration {unknown[-1]}); upgrade the audit consumer"
        )
    return applied


async def _apply(analytics: Analytics, migration: Migration) -> None:
    for statement in migration.statements:
        await analytics.execute(statement)
    await analytics.insert(
        f"{DATABASE}.migrations",
        {"number": [migration.number], "name": [migration.name], "digest": [migration.digest]},
    )


def _parse(name: str, text: str) -> Migration:
    bare = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE)
    statements = tuple(part.strip() for part in re.split(r";\s*(?:\n|$)", bare) if part.strip())
    return Migration(int(name.split("_", 1)[0]), name, hashlib.sha256(text.encode()).hexdigest(), statements)
