"""Every column says what it is, the page is up to date, and what ships for servers alone at least parses."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_embedded
from tidegate.errors import ConfigFault
from tidegate_audit_consumer.columns import TABLES, VIEWS, describe
from tidegate_audit_consumer.migrate import migrate, migrations

PAGE = Path(__file__).parents[2] / "docs" / "columns.md"


@pytest.fixture
async def analytics(tmp_path: Path) -> AsyncIterator[ClickHouseAnalytics]:
    analytics = open_embedded(tmp_path / "analytics")
    await migrate(analytics)
    yield analytics
    await analytics.close()


async def test_every_table_is_described_and_every_column_has_a_comment(analytics: ClickHouseAnalytics) -> None:
    tables = await analytics.query("SELECT name FROM system.tables WHERE database = 'tidegate'")
    assert {name for (name,) in tables.rows} == VIEWS.keys() | TABLES.keys()
    bare = await analytics.query("SELECT table, name FROM system.columns WHERE database = 'tidegate' AND comment = ''")
    assert bare.rows == []


async def test_the_page_of_columns_is_what_the_database_says(analytics: ClickHouseAnalytics) -> None:
    assert PAGE.read_text() == await describe(analytics), (
        "run python -m tidegate_audit_consumer.columns > docs/columns.md"
    )


async def test_views_show_plain_types(analytics: ClickHouseAnalytics) -> None:
    odd = await analytics.query(
        "SELECT table, name, type FROM system.columns WHERE database = 'tidegate' "
        "AND table IN ('calls', 'events', 'findings') AND type LIKE '%AggregateFunction%'"
    )
    assert odd.rows == []


async def test_keys_and_partitions_of_calls_are_made_of_what_every_event_of_a_call_repeats(
    analytics: ClickHouseAnalytics,
) -> None:
    answer = await analytics.query(
        "SELECT sorting_key, partition_key FROM system.tables WHERE database = 'tidegate' AND name = 'calls_raw'"
    )
    assert answer.rows == [("tenant, requested_at, call_id", "toYYYYMM(requested_at)")]


async def test_a_migration_that_changed_after_it_was_applied_is_refused(analytics: ClickHouseAnalytics) -> None:
    await analytics.execute("TRUNCATE TABLE tidegate.migrations")
    await analytics.insert("tidegate.migrations", {"number": [1], "name": ["0001_events.sql"], "digest": ["other"]})
    with pytest.raises(ConfigFault, match=r"0001_events\.sql"):
        await migrate(analytics)


async def test_a_migration_that_was_cut_off_runs_again(analytics: ClickHouseAnalytics) -> None:
    await analytics.execute("TRUNCATE TABLE tidegate.migrations")
    await analytics.execute("DROP VIEW tidegate.calls")
    assert await migrate(analytics) == [migration.name for migration in migrations()]
    assert (await analytics.query("SELECT count() FROM tidegate.calls")).rows == [(0,)]


@pytest.mark.parametrize(
    "statement", [statement for migration in migrations("migrations/server") for statement in migration.statements]
)
async def test_statements_for_servers_alone_parse(analytics: ClickHouseAnalytics, statement: str) -> None:
    assert (await analytics.query(f"EXPLAIN AST {statement}")).rows


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))
