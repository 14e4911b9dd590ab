"""The work of `tidegate limits show`. Counterpart: services/policy/tidegate_policy/limits_api.py."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from tidegate_cli.management import open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, plain, print_document, say, soon
from tidegate_cli.people import logins, person
from tidegate_cli.subjects import subject_named

_MICROS: Final = 1_000_000


def show_limits(wanted: dict[str, str], most: int, config: Path, token: str, as_json: bool) -> None:
    """Raises Fault."""
    settings = live_settings(config)
    if wanted["user"]:
        wanted = {**wanted, "user": subject_named(settings, wanted["user"])}
    query = {name: value for name, value in wanted.items() if value}
    found = open_management(settings, token).get("/limits", most=most, **query)
    if as_json:
        print_document(found)
        return
    if not found["counters"]:
        say("Nothing of any such limit is used.")
        return
    names = logins(settings, [value for one in found["counters"] for value in one["per"].values()])
    console().print(_table(found["counters"], names, time.time()))
    if not found["whole"]:
        say("[yellow]There are more[/]: name a limit, a user, an agent, a server or a tool.")


def _table(counters: list[dict[str, Any]], names: Mapping[str, str], now_s: float) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("limit", "measure", "of", "used", "left", "on lease", "next", "full"):
        table.add_column(name, justify="right" if name in ("used", "left", "on lease") else "left")
    for counter in counters:
        full = counter["left"] == 0
        used = f"{_amount(counter, counter['used'])} of {_amount(counter, counter['most'])}"
        table.add_row(
            plain(counter["limit"]),
            plain(counter["measure"]),
            plain(", ".join(f"{name} {person(names, value, 32)}" for name, value in counter["per"].items())),
            f"[red]{used}[/]" if full else used,
            _amount(counter, counter["left"]),
            _amount(counter, counter["held"]) if counter["held"] else "",
            "now" if counter["left"] else _when(counter["next_us"], now_s),
            _when(counter["renewed_us"], now_s),
        )
    return table


def _amount(counter: dict[str, Any], number: int) -> str:
    return f"{number / _MICROS:.4f}" if counter["measure"] == "daily-cost" else f"{number:,}"


def _when(at_us: int, now_s: float) -> str:
    """As people say it; "" where that cannot be told."""
    return soon(at_us / 1e6 - now_s) if at_us else ""
