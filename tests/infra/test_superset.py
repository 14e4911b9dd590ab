"""The Superset export without Superset: its shape, and every chart's query on the real engine, as the account that only
reads, about a day that is known. `python -m tools.superset --check` imports it for real and asks Superset the same.
"""

import io
import re
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import yaml
from tests.infra.test_dashboards import BOARDS
from tests.infra.test_dashboards import KNOWN as KNOWN_IN_GRAFANA
from tests.parts.known_day import live_through
from tools.superset_export import DATABASE_FILE, MASK, TEMPORAL, TOP, Yaml, pack, query_of, read_export, sql_of

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader
from tidegate.analytics.port import Answer
from tidegate.ids import now_us
from tidegate.settings import Settings
from tidegate_audit_consumer.migrate import migrate

EXPORT = read_export()
CHARTS = [(slug, chart) for slug, board in EXPORT.dashboards.items() for chart in EXPORT.charts_of(board)]
NAMES = [f"{slug}: {chart['slice_name']}" for slug, chart in CHARTS]
PRIVATE = re.compile(r"AggregateFunction|^Array")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouseAnalytics]:
    data = tmp_path_factory.mktemp("engine")
    async with EmbeddedEngine(data) as engine:
        await migrate(engine.analytics)
        await live_through(engine.analytics, now_us())
        reader = open_reader(Settings(root=str(data), data="."))
        yield reader
        await reader.close()


async def ask(reader: ClickHouseAnalytics, chart: Yaml, *also: str) -> Answer:
    dataset = EXPORT.dataset_of(chart)
    return await reader.query(sql_of(chart, dataset, "now() - INTERVAL 6 HOUR", "now() + INTERVAL 1 MINUTE", also))


def of_board(name: str) -> list[Yaml]:
    return EXPORT.charts_of(EXPORT.dashboards[f"tidegate-{name}"])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("slug", "chart"), CHARTS, ids=NAMES)
async def test_every_chart_has_something_to_show(reader: ClickHouseAnalytics, slug: str, chart: Yaml) -> None:
    answer = await ask(reader, chart)
    assert answer.rows
    if chart["viz_type"] == "big_number_total":
        assert len(answer.rows) == len(answer.names) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_figures_are_those_of_the_grafana_dashboards(reader: ClickHouseAnalytics) -> None:
    compared = 0
    for slug, chart in CHARTS:
        known = KNOWN_IN_GRAFANA.get(f"{slug.removeprefix('tidegate-')}: {chart['slice_name']}")
        if chart["viz_type"] == "big_number_total" and known is not None:
            chosen = ["session_id = 's1'"] if slug == "tidegate-session" else []
            ((figure,),) = (await ask(reader, chart, *chosen)).rows
            scale = 1_000 if chart["params"]["metric"].endswith("_ms") else 1  # Grafana is given microseconds
            assert figure * scale == known, chart["slice_name"]
            compared += 1
    assert compared == len(KNOWN_IN_GRAFANA)


KNOWN: dict[str, list[Any]] = {  # the first columns of every row
    "Reasons": [("tool-not-granted", 2), ...],
    "Rules that refuse": [("ask-pay", "ask", 1), ("forbid-write", "deny", 1)],
    "What inspection found": [
        ("card", "critical", "arguments", "block", "files", 1),
        ("token", "medium", "result", "mask", "files", 1),
    ],
    "Sent through egress servers": [
        ("carol@example.com", "night-batch", "pay", "send_payment", 5_000, 1),
        ("alice@example.com", "claude-code", "pay", "send_payment", 100, 1),
    ],
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", KNOWN)
async def test_tables_show_what_is_known(reader: ClickHouseAnalytics, name: str) -> None:
    (chart,) = [chart for _, chart in CHARTS if chart["slice_name"] == name]
    rows, known = (await ask(reader, chart)).rows, KNOWN[name]
    if known[-1] is ...:
        assert rows[: len(known) - 1] == known[:-1]
    else:
        assert sorted(rows) == sorted(known)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_chosen_session_is_shown_from_its_first_call_to_its_last(reader: ClickHouseAnalytics) -> None:
    shown = {chart["slice_name"]: chart for chart in of_board("session")}
    answer = await ask(reader, shown["Session, call by call"], "session_id = 's1'")
    told = [dict(zip(answer.names, row, strict=True)) for row in answer.rows]
    assert [one["requested_at"] for one in told] == sorted(one["requested_at"] for one in told)
    assert [one["tool"] for one in told][-4:] == [
        *("files/read_file", "files/read_file", "pay/send_payment", "files/write_file")
    ]
    assert {one["login"] for one in told} == {"alice@example.com"}
    assert [one["found"] for one in told][-3:] == ["token", "", "card"]
    for name in shown:
        assert (await ask(reader, shown[name], "session_id = 's1'")).rows, name


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("dataset", EXPORT.datasets.values(), ids=lambda dataset: dataset["table_name"])
async def test_a_dataset_is_a_view_with_these_columns(reader: ClickHouseAnalytics, dataset: Yaml) -> None:
    answer = await reader.query(
        "SELECT name, type FROM system.columns WHERE database = {d:String} AND table = {t:String}",
        {"d": dataset["schema"], "t": dataset["table_name"]},
    )
    stored = {one["column_name"]: one["type"] for one in dataset["columns"] if "expression" not in one}
    assert stored.items() <= dict(answer.rows).items()
    assert dataset["main_dttm_col"] in stored
    for one in dataset["columns"]:
        assert one["is_dttm"] == ("Date" in one["type"] and not PRIVATE.search(one["type"])), one["column_name"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("dataset", EXPORT.datasets.values(), ids=lambda dataset: dataset["table_name"])
async def test_every_metric_and_calculated_column_is_valid(reader: ClickHouseAnalytics, dataset: Yaml) -> None:
    table = f"{dataset['schema']}.{dataset['table_name']}"
    metrics = ", ".join(f"{one['expression']} AS `{one['metric_name']}`" for one in dataset["metrics"])
    assert len((await reader.query(f"SELECT {metrics} FROM {table}")).rows) == 1
    calculated = {one["column_name"]: one["expression"] for one in dataset["columns"] if "expression" in one}
    for name, expression in calculated.items():
        assert (await reader.query(f"SELECT {expression} AS `{name}` FROM {table} LIMIT 1")).names == (name,)


def test_no_metric_is_named_as_a_column() -> None:
    """ClickHouse would put the one in the place of the other inside the query."""
    for dataset in EXPORT.datasets.values():
        columns = {one["column_name"] for one in dataset["columns"]}
        assert not columns & {one["metric_name"] for one in dataset["metrics"]}


@pytest.mark.parametrize("slug", EXPORT.dashboards)
def test_a_dashboard_places_each_of_its_charts_once_within_its_width(slug: str) -> None:
    board = EXPORT.dashboards[slug]
    places = board["position"]
    shown = [chart["uuid"] for chart in EXPORT.charts_of(board)]
    assert len(shown) == len(set(shown))
    for row in places["GRID_ID"]["children"]:
        assert sum(places[name]["meta"]["width"] for name in places[row]["children"]) <= 12
    for name in (name for name in places if name.startswith("CHART-")):
        assert places[name]["meta"]["sliceName"] == EXPORT.charts[places[name]["meta"]["uuid"]]["slice_name"]
    filters = board["metadata"]["native_filter_configuration"]
    assert [one["filterType"] for one in filters][:2] == ["filter_time", "filter_select"]
    for target in (target for one in filters for target in one["targets"] if target):
        columns = {one["column_name"] for one in EXPORT.datasets[target["datasetUuid"]]["columns"]}
        assert target["column"]["name"] in columns


def test_no_chart_is_left_over_and_each_has_a_span_of_time() -> None:
    assert {chart["uuid"] for _, chart in CHARTS} == EXPORT.charts.keys()
    for _, chart in CHARTS:
        filters = query_of(chart, EXPORT.dataset_of(chart))["filters"]
        assert [one["op"] for one in filters].count(TEMPORAL) == 1


def test_what_grafana_shows_superset_shows() -> None:
    assert {slug.removeprefix("tidegate-") for slug in EXPORT.dashboards} == BOARDS.keys()
    for name, board in BOARDS.items():
        assert len(of_board(name)) == len(board["panels"])


def test_the_pack_names_the_given_address_holds_no_secret_and_queries_for_every_chart() -> None:
    with zipfile.ZipFile(io.BytesIO(pack(EXPORT, "db.example:8443", "some one"))) as packed:
        content = {name.removeprefix(f"{TOP}/"): yaml.safe_load(packed.read(name)) for name in packed.namelist()}
    assert content.keys() == EXPORT.files.keys()
    assert content["metadata.yaml"]["type"] == "Dashboard"
    assert content[DATABASE_FILE]["sqlalchemy_uri"] == f"clickhousedb://some%20one:{MASK}@db.example:8443/tidegate"
    assert f":{MASK}@" in EXPORT.files[DATABASE_FILE]["sqlalchemy_uri"]
    for path in (path for path in content if path.startswith("charts/")):
        assert '"queries": [{' in content[path]["query_context"]
