"""The work of `tidegate sql`: one statement that can only read, its rows printed, its errors explained.

Reading is a matter of grammar here, so that it holds whatever the account may do: a SELECT runs as a subquery under a
LIMIT of ours, where nothing else parses; the other statements are those that show. In local mode the reader's token
says no once more. Counterpart: `sql_printing.py`.
"""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from tidegate.analytics.port import Answer
from tidegate.errors import AnalyticsRefused, ConfigFault
from tidegate.settings import Settings
from tidegate_cli.options import live_settings
from tidegate_cli.reaching import reaching
from tidegate_cli.sql_printing import PRINTERS

QUERY_BYTES_MAX = 200_000
SKIPPED = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
FIRST_WORD = re.compile(rf"{SKIPPED}\(?{SKIPPED}([A-Za-z]+)", re.DOTALL)
LAST_CLAUSE = re.compile(r"\bFORMAT\s+\w+\s*$", re.IGNORECASE)
PARAMETER = re.compile(r"[A-Za-z_]\w*")
SELECTING = frozenset({"SELECT", "WITH"})
SHOWING = frozenset({"SHOW", "EXPLAIN", "EXISTS", "DESC", "DESCRIBE"})
NOISE = re.compile(
    r"^.*?DB::Exception: |\s*\(for url [^)]*\)\s*$|\s*\(version [^)]*\)|\s*Stack trace:.*|: While processing .*",
    re.DOTALL,
)
CODE = re.compile(r"[Cc]ode: (\d+)")
COLUMNS = "tidegate sql 'DESCRIBE tidegate.calls' shows a view's columns, docs/columns.md tells what they mean"
ADVICE = {
    "47": COLUMNS,
    "60": "tidegate sql 'SHOW TABLES FROM tidegate' lists what there is; name it with its database, as tidegate.calls",
    "81": "the database is tidegate; it is there once the audit consumer has started",
    "158": "ask for a shorter span of time, or group",
    "159": "it took too long: ask for a shorter span of time, or the counts of tidegate.calls_by_hour",
    "164": "only reading is allowed here",
    "215": "what is not aggregated belongs into GROUP BY",
    "241": "it needs more memory than there is: ask for a shorter span of time, fewer columns, or the counts",
    "396": "its result is too large: group, or ask for fewer columns",
    "456": "give its value: --param NAME=VALUE",
}


def ask(config: Path, query: str, *, form: str, rows_max: int, params: Sequence[str]) -> None:
    """Prints the answer. Raises ConfigFault where the query is not one that reads, AnalyticsRefused with advice."""
    settings = live_settings(config)
    statement = bounded(_given(query), rows_max)
    try:
        answer = asyncio.run(_answer(settings, statement, parameters_of(params)))
        PRINTERS[form](Answer(answer.names, answer.rows[:rows_max]))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if len(answer.rows) > rows_max:
        typer.echo(f"the first {rows_max:,} rows; there are more: --rows {rows_max * 10} prints them", err=True)


def bounded(query: str, rows_max: int) -> str:
    """The statement to send: it reads, and brings one row more than are wanted. Raises ConfigFault."""
    text = query.strip().removesuffix(";").rstrip()
    found = FIRST_WORD.match(text)
    word = found[1].upper() if found else ""
    if word not in SELECTING | SHOWING:
        raise ConfigFault(
            "tidegate sql only reads: begin with SELECT, WITH, SHOW, DESCRIBE, EXPLAIN or EXISTS, "
            f"not '{word or text[:20]}'"
        )
    if ";" in text or "outfile" in text.casefold():  # strict where reading SQL right would take a parser
        raise ConfigFault(
            "one statement at a time, without ';' or OUTFILE in it; give texts that hold them with --param NAME=VALUE"
        )
    if LAST_CLAUSE.search(text):
        raise ConfigFault("leave FORMAT out of the query; --format table, csv, json or jsonl says how rows are printed")
    if word in SELECTING:
        return f"SELECT * FROM (\n{text}\n) LIMIT {rows_max + 1}"  # noqa: S608  the caller's own statement
    if word.startswith("DESC") and "(" in text:
        raise ConfigFault("only tables and views can be described here: tidegate sql 'DESCRIBE tidegate.calls'")
    return text


def parameters_of(given: Sequence[str]) -> dict[str, str]:
    """`--param who=alice` as {"who": "alice"}. Raises ConfigFault."""
    parameters = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign or not PARAMETER.fullmatch(name):
            raise ConfigFault(f"--param {one}: give a name and a value, as --param who=alice for {{who:String}}")
        parameters[name] = value
    return parameters


def explained(sentence: str) -> str:
    """ClickHouse's own words without the wrapping, and what to do about them."""
    code = CODE.search(sentence)
    words = NOISE.sub("", sentence).strip()
    advice = ADVICE.get(code[1], "") if code else ""
    return f"{words}; {advice}" if advice else words


def _given(query: str) -> str:
    text = sys.stdin.read(QUERY_BYTES_MAX + 1) if query == "-" else query
    if len(text.encode()) > QUERY_BYTES_MAX:
        raise ConfigFault(
            f"the query has more than {QUERY_BYTES_MAX:,} bytes; put long lists of values into fewer words"
        )
    if not text.strip():
        raise ConfigFault(
            "the query is empty; try tidegate sql 'SELECT status, count() FROM tidegate.calls GROUP BY 1'"
        )
    return text


async def _answer(settings: Settings, statement: str, parameters: dict[str, str]) -> Answer:
    async with reaching(settings) as analytics:
        try:
            return await analytics.query(statement, parameters)
        except AnalyticsRefused as fault:
            raise AnalyticsRefused(explained(fault.sentence)) from fault
