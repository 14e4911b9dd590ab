"""Every query of every dashboard, on the real engine and as the account that only reads, about a day that is known."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import yaml
from tests.parts.known_day import live_through

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader
from tidegate.analytics.port import Answer
from tidegate.ids import now_us
from tidegate.settings import Settings
from tidegate_audit_consumer.migrate import migrate

GRAFANA = Path(__file__).parents[2] / "infra" / "dashboards" / "grafana"
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
DATASOURCE = "grafana-clickhouse-datasource"
INTERVAL_S = 300
SPAN_S = 6 * 3_600
CHOSEN = {"tenant": "'acme','globex'", "person": "'alice@example.com'", "session": "'s1'"}
MENUS = {"session": ["person", "session"]}  # beside the data source and the tenant


class Query(NamedTuple):
    board: str
    title: str
    kind: str
    sql: str


def queries() -> Iterator[Query]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield Query(name, panel["title"], panel["type"], target["rawSql"])
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield Query(name, f"menu {variable['name']}", "menu", variable["query"])


QUERIES = list(queries())


def expanded(sql: str, now_s: int) -> str:
    """As Grafana and the plugin's macros make it: https://github.com/grafana/clickhouse-datasource, pkg/macros."""
    start, end = f"toDateTime({now_s - SPAN_S})", f"toDateTime({now_s})"
    sql = re.sub(r"\$__timeFilter\(([^)]+)\)", rf"\1 >= {start} AND \1 <= {end}", sql)
    sql = re.sub(
        r"\$__timeInterval\(([^)]+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {INTERVAL_S} second)", sql
    )
    sql = sql.replace("$__fromTime", start).replace("$__toTime", end)
    for name, value in CHOSEN.items():
        sql = sql.replace(f"${{{name}:singlequote}}", value)
    return sql


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouseAnalytics]:
    data = tmp_path_factory.mktemp("engine")
    async with EmbeddedEngine(data) as engine:
        await migrate(engine.analytics)
        await live_through(engine.analytics, now_us())
        reader = open_reader(Settings(root=str(data), data="."))
        yield reader
        await reader.close()


async def ask(reader: ClickHouseAnalytics, query: Query) -> Answer:
    return await reader.query(expanded(query.sql, now_us() // 1_000_000 + 1))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.board}: {query.title}")
async def test_every_query_answers_in_the_shape_that_its_panel_draws(reader: ClickHouseAnalytics, query: Query) -> None:
    assert "$" not in expanded(query.sql, 1)
    answer = await ask(reader, query)
    assert answer.rows, "the known day has something for every panel"
    if query.kind == "timeseries":
        assert answer.names[0] == "time"
        times = [row[0] for row in answer.rows]
        assert all(isinstance(time, datetime) for time in times)
        assert times == sorted(times)
        assert all(isinstance(row[-1], int | float) for row in answer.rows)
    if query.kind == "stat":
        assert len(answer.rows) == len(answer.names) == 1


KNOWN: dict[str, Any] = {
    "usage: Calls": 18,
    "usage: People": 3,
    "usage: Agents": 3,
    "usage: Tools used": 4,
    "access: Not let through": 6,
    "access: Share not let through": pytest.approx(6 / 18),
    "access: Blocked by inspection": 1,
    "access: People refused": 3,
    "security: High and critical findings": 1,
    "security: Calls with something found": 2,
    "security: Values masked in answers": 1,
    "security: Definitions changed": 1,
    "reliability: Median": pytest.approx(20_000, rel=0.02),
    "reliability: 95th percentile": pytest.approx(5_000_000, rel=0.02),
    "reliability: Failed": 2,
    "reliability: Lost with their edge": 1,
    "integrity: Roots found whole": 1,
    "integrity: Roots found broken": 1,
    "integrity: Records sealed": 30,
    "session: Calls of the session": 9,
    "session: Refused in the session": 1,
    "session: Tools called": 4,
    "session: Calls of the session with something found": 2,
}
SUMS = {  # of the last column of a graph, over all its points
    "usage: Calls by agent": 18,
    "usage: Bytes": 108_000,
    "access: Decisions": 18,
    "reliability: Failures by status": 3,
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.board}: {query.title}")
async def test_figures_and_graphs_show_what_is_known(reader: ClickHouseAnalytics, query: Query) -> None:
    name = f"{query.board}: {query.title}"
    answer = await ask(reader, query)
    if query.kind == "stat" and name in KNOWN:
        assert answer.rows == [(KNOWN[name],)]
    if name in SUMS:
        assert sum(row[-1] for row in answer.rows) == SUMS[name]


def test_every_figure_that_is_known_is_a_panel() -> None:
    shown = {f"{query.board}: {query.title}" for query in QUERIES}
    assert KNOWN.keys() | SUMS.keys() <= shown


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_one_that_grafana_can_load(name: str) -> None:
    board = BOARDS[name]
    panels = board["panels"]
    assert board["uid"] == f"tidegate-{name}"
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [variable["name"] for variable in board["templating"]["list"]] == [
        "datasource",
        "tenant",
        *MENUS.get(name, []),
    ]
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": DATASOURCE, "uid": "${datasource}"}
            assert (target["format"], target["queryType"]) in ((0, "timeseries"), (1, "table"))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"


def test_provisioning_names_the_plugin_and_holds_no_secret() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/tidegate.yaml").read_text())["datasources"]
    assert source["type"] == DATASOURCE
    assert source["jsonData"]["defaultDatabase"] == "tidegate"
    assert re.fullmatch(r"\$[A-Z_]+", source["secureJsonData"]["password"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/tidegate.yaml").read_text())["providers"]
    assert provider["options"]["path"] in (GRAFANA.parent / "README.md").read_text()
