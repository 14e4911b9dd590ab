"""The Superset export under `infra/dashboards/superset`: read, packed into what Superset imports, and asked without it.

A chart is kept as its form alone; `query_of` makes of it the query that Superset's front end would send, so that a
packed chart answers over the API as well. `sql_of` writes the same query in SQL, for tests that have no Superset.
Counterpart: `superset.py`, which imports the pack into a real Superset.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml

FOLDER: Final = Path(__file__).resolve().parents[1] / "infra" / "dashboards" / "superset"
DATABASE_FILE: Final = "databases/Tidegate.yaml"
TOP: Final = "tidegate"  # the one folder inside the zip; Superset strips it
MASK: Final = "XXXXXXXXXX"  # what Superset writes for a password, and asks for while it imports
GRAINS: Final = {"PT1M": 60, "PT5M": 300, "PT1H": 3_600, "P1D": 86_400}
TEMPORAL: Final = "TEMPORAL_RANGE"

Yaml = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """Every file by its path inside the folder; datasets and charts by their uuid."""

    files: Mapping[str, Yaml]

    @property
    def datasets(self) -> dict[str, Yaml]:
        return self._by_uuid("datasets/")

    @property
    def charts(self) -> dict[str, Yaml]:
        return self._by_uuid("charts/")

    @property
    def dashboards(self) -> dict[str, Yaml]:
        """By slug."""
        return {one["slug"]: one for path, one in self.files.items() if path.startswith("dashboards/")}

    def charts_of(self, dashboard: Yaml) -> list[Yaml]:
        """In the order in which its rows show them."""
        places = dashboard["position"]
        rows = [places[name] for name in places["GRID_ID"]["children"]]
        return [self.charts[places[name]["meta"]["uuid"]] for row in rows for name in row["children"]]

    def dataset_of(self, chart: Yaml) -> Yaml:
        return self.datasets[chart["dataset_uuid"]]

    def _by_uuid(self, folder: str) -> dict[str, Yaml]:
        return {one["uuid"]: one for path, one in self.files.items() if path.startswith(folder)}


def read_export(folder: Path = FOLDER) -> Export:
    paths = sorted(folder.rglob("*.yaml"))
    return Export({str(path.relative_to(folder)): yaml.safe_load(path.read_text()) for path in paths})


def pack(export: Export, address: str = "", account: str = "") -> bytes:
    """A zip for Superset. `address` (host:port) and `account` replace the
    database's; its password stays masked, Superset asks for it.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for path, one in export.files.items():
            packed.writestr(f"{TOP}/{path}", yaml.safe_dump(_packed(export, path, one, address, account)))
    return content.getvalue()


def _packed(export: Export, path: str, one: Yaml, address: str, account: str) -> Yaml:
    if path.startswith("charts/"):
        return one | {"query_context": json.dumps(context_of(one, export.dataset_of(one)))}
    if path == DATABASE_FILE and address:
        return one | {"sqlalchemy_uri": f"clickhousedb://{quote(account, safe='')}:{MASK}@{address}/tidegate"}
    return one


def context_of(chart: Yaml, dataset: Yaml) -> Yaml:
    """What Superset saves beside a chart, to query it without a browser; the import puts the dataset's id in."""
    return {
        "datasource": {"id": 0, "type": "table"},
        "force": False,
        "queries": [query_of(chart, dataset)],
        "form_data": chart["params"],
        "result_format": "json",
        "result_type": "full",
    }


def query_of(chart: Yaml, dataset: Yaml) -> Yaml:
    """The query that the front end makes of the chart's form. Raises ValueError for a kind of chart not used here."""
    form = chart["params"]
    query: Yaml = {
        "filters": [
            {"col": one["subject"], "op": one["operator"], "val": one["comparator"]}
            for one in form["adhoc_filters"]
            if one["expressionType"] == "SIMPLE"
        ],
        "extras": {
            "where": " AND ".join(
                f"({one['sqlExpression']})" for one in form["adhoc_filters"] if one["expressionType"] == "SQL"
            )
        },
        "row_limit": form.get("row_limit", 10_000),
        "is_timeseries": False,
    }
    match chart["viz_type"]:
        case "big_number_total":
            return query | {"columns": [], "metrics": [form["metric"]]}
        case "pie":
            metric = form["metric"]
            return query | {"columns": form["groupby"], "metrics": [metric], "orderby": [[metric, False]]}
        case "echarts_timeseries_line" | "echarts_timeseries_bar":
            columns = [_axis(form), *form["groupby"]]
            return query | {"columns": columns, "metrics": form["metrics"], "orderby": [[form["metrics"][0], False]]}
        case "table" if form["query_mode"] == "raw":
            orders = [json.loads(one) for one in form["order_by_cols"]]
            return query | {"columns": form["all_columns"], "metrics": None, "orderby": orders}
        case "table":
            orders = [[form["timeseries_limit_metric"], not form["order_desc"]]]
            return query | {"columns": form["groupby"], "metrics": form["metrics"], "orderby": orders}
        case other:
            raise ValueError(f"{chart['slice_name']}: no query is known for charts of the kind '{other}'")


def _axis(form: Yaml) -> Yaml:
    return {
        "columnType": "BASE_AXIS",
        "expressionType": "SQL",
        "label": form["x_axis"],
        "sqlExpression": form["x_axis"],
        "timeGrain": form["time_grain_sqla"],
    }


def sql_of(chart: Yaml, dataset: Yaml, since: str, until: str, also: Sequence[str] = ()) -> str:
    """The chart's query as ClickHouse's SQL over a span of time, given as SQL; `also` are further conditions."""
    query = query_of(chart, dataset)
    expressions = {one["column_name"]: one.get("expression") or f"`{one['column_name']}`" for one in dataset["columns"]}
    metrics = {one["metric_name"]: one["expression"] for one in dataset["metrics"]}
    chosen = [(_name(one), _column(one, expressions)) for one in query["columns"]]
    measured = [(name, metrics[name]) for name in query["metrics"] or ()]
    conditions = [_condition(one, expressions, since, until) for one in query["filters"]]
    conditions += [text for text in (query["extras"]["where"], *also) if text]
    parts = [
        "SELECT " + ", ".join(f"{expression} AS `{name}`" for name, expression in chosen + measured),
        f"FROM {dataset['schema']}.{dataset['table_name']}",
        "WHERE " + " AND ".join(conditions),
    ]
    if chosen and measured:
        parts.append("GROUP BY " + ", ".join(f"`{name}`" for name, _ in chosen))
    by = expressions | metrics
    if orders := [f"{by[name]} {'ASC' if rises else 'DESC'}" for name, rises in query.get("orderby", ())]:
        parts.append("ORDER BY " + ", ".join(orders))
    return " ".join([*parts, f"LIMIT {query['row_limit']}"])


def _name(column: Yaml | str) -> str:
    return column if isinstance(column, str) else str(column["label"])


def _column(column: Yaml | str, expressions: Mapping[str, str]) -> str:
    if isinstance(column, str):
        return expressions[column]
    seconds = GRAINS[column["timeGrain"]]
    return f"toStartOfInterval(toDateTime({expressions[column['sqlExpression']]}), INTERVAL {seconds} second)"


def _condition(one: Yaml, expressions: Mapping[str, str], since: str, until: str) -> str:
    column, value = expressions[one["col"]], one["val"]
    match one["op"]:
        case "TEMPORAL_RANGE":
            return f"{column} >= {since} AND {column} < {until}"
        case "IN" | "NOT IN":
            return f"{column} {one['op']} ({', '.join(map(_literal, value))})"
        case "==" | "!=":
            return f"{column} {one['op']} {_literal(value)}"
        case other:
            raise ValueError(f"no condition is known for the operator '{other}'")


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
