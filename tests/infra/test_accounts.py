"""What accounts of `migrations/server` may see, on the real engine: its own enforcement of grants and row policies.

Not shown: that an account's SQL_tenant cannot be changed, and signing in, which only a server has.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.parts.accounts import TENANT, accounts, accounts_file, ask
from tests.parts.audit_events import delivered, finding
from tests.parts.known_day import Day

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.chain import Chain
from tidegate.ids import now_us
from tidegate.log.port import Record
from tidegate_audit_consumer.migrate import migrate, migrations
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

TENANTS = ("acme", "globex")
SEPARATE = "SELECT name, table FROM system.columns WHERE database = 'tidegate' AND name = 'tenant' ORDER BY table"
# Materialized views: what they hold is in the tables that they write to.
VIEWS_TENANT = "getSettingOrDefault('SQL_tenant', '')"
FEEDS = ("_feed", "_refresh")


def records_of(tenant: str) -> list[Record]:
    """The known day, lived by another company as well."""
    chain = Chain(f"edge-{tenant}.spool.1")
    events = [msgspec.structs.replace(event, tenant=tenant) for event in Day(now_us()).events]
    return [*[chain.seal(event) for event in events], Record("detections", b"k", finding(f"f-{tenant}", tenant=tenant))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine's directory, filled and closed."""
    data = tmp_path_factory.mktemp("accounts")
    asyncio.run(fill(data))
    return data / "analytics"


async def fill(data: Path) -> None:
    async with EmbeddedEngine(data) as engine:
        await migrate(engine.analytics)
        for number, tenant in enumerate(TENANTS):
            batch = delivered(records_of(tenant), number * 1_000)
            await store(engine.analytics, open_batch(batch), batch)
            key = {"tenant": [tenant], "subject_id": ["5ub"], "kid": [f"kid-{tenant}"], "key": ["k" * 32]}
            await engine.analytics.insert("tidegate.subject_keys", key)


@pytest.fixture(scope="module")
def everything(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Tenants by table or view, as an administrator sees them."""
    config = accounts_file(tmp_path_factory.mktemp("admin"))
    assert ask(directory, config, opened_for("")) == [[], []]
    (tables,) = ask(directory, config, [SEPARATE])
    names = [table for _, table in tables if not str(table).endswith(FEEDS)]
    answers = ask(directory, config, [tenants_in(name) for name in names])
    return {name: _tenants(answer) for name, answer in zip(names, answers, strict=True)}


def opened_for(tenant: str) -> list[str]:
    """The view `calls` as a server has it: it runs as another account, and looks at SQL_tenant, here a constant."""
    view = [one for made in migrations() for one in made.statements if "OR REPLACE VIEW tidegate.calls\n" in one][-1]
    assert view.count(VIEWS_TENANT) == 2
    (definer,) = [one for made in migrations("migrations/server") for one in made.statements if "SQL SECURITY" in one]
    return [view.replace(VIEWS_TENANT, f"'{tenant}'"), definer]


def tenants_in(table: str) -> str:
    return f"SELECT DISTINCT tenant FROM tidegate.{table} ORDER BY tenant"


def _tenants(answer: Any) -> list[str]:
    return answer if isinstance(answer, str) else [str(tenant) for (tenant,) in answer]


def as_account(
    directory: Path, folder: Path, role: str, tenant: str, statements: Sequence[str]
) -> dict[str, list[str] | str]:
    answers = ask(directory, accounts_file(folder, role=role, tenant=tenant), statements)
    return {one: _tenants(answer) for one, answer in zip(statements, answers, strict=True)}


def test_a_tenant_s_reader_sees_its_own_rows_alone_in_every_table_and_view(
    directory: Path, everything: dict[str, list[str]], tmp_path: Path
) -> None:
    filled = [name for name, tenants in everything.items() if tenants == list(TENANTS)]
    assert {"calls_raw", "events", "denials", "findings", "calls_by_minute", "policy_hits", "subject_keys"} <= {*filled}
    for tenant in TENANTS:
        assert ask(directory, accounts_file(tmp_path / "admin"), opened_for(tenant)) == [[], []]
        asked = {name: tenants_in(name) for name in everything}
        seen = as_account(directory, tmp_path / tenant, "tidegate_tenant_reader", tenant, list(asked.values()))
        for name, statement in asked.items():
            assert seen[statement] == ([tenant] if name in filled else []), name
    assert ask(directory, accounts_file(tmp_path / "admin"), opened_for("")) == [[], []]


def test_every_table_with_a_tenant_has_a_row_policy(everything: dict[str, list[str]]) -> None:
    said = accounts()
    assert {(one.condition, one.role) for one in said.policies} == {(f"tenant = {TENANT}", "tidegate_tenant_reader")}
    tables = {name for name in everything if name.endswith(("_raw", "_marks")) or name in ("erasures", "subject_keys")}
    assert tables == {one.table for one in said.policies}


def test_a_reader_sees_all_tenants_and_can_neither_write_nor_reach_outside(
    directory: Path, everything: dict[str, list[str]], tmp_path: Path
) -> None:
    refused = [
        "INSERT INTO tidegate.parameters (name, value) VALUES ('unknown_after_s', 1)",
        "ALTER TABLE tidegate.calls_raw DELETE WHERE 1",
        "TRUNCATE TABLE tidegate.events_raw",
        "DROP TABLE tidegate.calls_raw",
        "CREATE TABLE tidegate.mine (a UInt8) ENGINE = Memory",
        "SELECT * FROM file('/etc/hostname', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SELECT key FROM tidegate.subject_keys",
        "SELECT joinGet('tidegate.subject_keys', 'key', '')",
        "CREATE USER someone",
        "GRANT tidegate_writer TO default",
        "SET ROLE tidegate_writer",
    ]
    allowed = [tenants_in(name) for name in ("calls", "denials", "events", "findings", "calls_by_hour")]
    seen = as_account(directory, tmp_path, "tidegate_reader", "", [*allowed, *refused])
    for one in allowed:
        assert seen[one] == list(TENANTS), one
    for one in refused:
        assert isinstance(seen[one], str), one


def test_a_writer_writes_and_makes_no_accounts(
    directory: Path, everything: dict[str, list[str]], tmp_path: Path
) -> None:
    written = "INSERT INTO tidegate.parameters (name, value) VALUES ('unknown_after_s', 600)"
    outside = ["CREATE USER someone", "SELECT * FROM file('/etc/hostname', 'LineAsString')"]
    seen = as_account(directory, tmp_path, "tidegate_writer", "", [written, *outside])
    assert seen[written] == []
    assert [seen[one] for one in outside] == ["ACCESS_DENIED"] * 2
