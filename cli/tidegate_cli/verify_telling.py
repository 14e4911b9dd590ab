"""What `tidegate verify` says of a report, to people and as JSON. Counterpart: `verifying.py`."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from tidegate_cli.expiry import WORD
from tidegate_cli.output import plain, say
from tidegate_cli.verifying import Report

SHOWN_MAX = 20


def shown_time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def document(report: Report) -> dict[str, Any]:
    """As `--json` prints it."""
    first = report.first_wrong
    return {
        "verdict": report.verdict,
        "from": shown_time(report.from_us),
        "to": shown_time(report.to_us),
        "roots": report.roots,
        "latest": report.latest,
        "sealed_at": shown_time(report.sealed_us) if report.sealed_us else None,
        "records": report.records,
        "unproven": report.unproven,
        "pending": report.pending,
        "overdue": report.overdue,
        "expired": report.expired,
        "expired_before": shown_time(report.expired_before_us) if report.expired_before_us else None,
        "expired_why": report.expired_why,
        "hint": hint(report),
        "nothing": report.nothing,
        "first_wrong": None if first is None else first._asdict(),
        "wrong": [one._asdict() for one in report.wrong],
        "rows": [one._asdict() for one in report.rows],
        "losses": [msgspec.to_builtins(one) for one in report.losses],
        "problems": [one._asdict() for one in report.problems],
    }


def counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def hint(report: Report) -> str:
    """What somebody claims about records that are missing, and how to accept it; "" where nobody does."""
    if not report.claimed_by:
        return ""
    if report.claimed_us > time.time_ns() // 1000:  # and perhaps beyond all calendars
        return f"{report.claimed_by} says that records up to a time that has not come yet had expired: nothing has"
    before = shown_time(-(-report.claimed_us // 1_000_000) * 1_000_000)
    why = f" ({report.claimed_why})" if report.claimed_why else ""
    return (
        f"{report.claimed_by} says that records from before {before} had expired{why}, and nothing proves it; "
        f"if you accept that, give --expired-before {before}"
    )


def show(report: Report, *, is_copy: bool) -> None:
    """For people."""
    series = ", ".join(f"{plain(sealer)} up to {number}" for sealer, number in report.latest.items())
    held = counted(report.records, "record is", "records are")
    under = f"under {counted(report.roots, 'root', 'roots')}" + f" ({series})" * bool(series)
    _show_verdict(report, f"{held} what was sealed, {under}", is_copy)
    for loss in report.losses[:SHOWN_MAX]:
        say(f"  [yellow]lost[/] on the disk of edge {plain(loss.edge)}: {plain(loss.message)}")
    for problem in report.problems[:SHOWN_MAX]:
        say(f"  root {problem.number} of {plain(problem.sealer)}: {plain(problem.sentence)}")
    for wrong in report.wrong[:SHOWN_MAX]:
        say(f"  {wrong.kind} · {plain(wrong.writer)} · record {wrong.seq}: {plain(wrong.sentence)}")
    for row in report.rows[:SHOWN_MAX]:
        say(f"  {row.kind} · {plain(row.sentence)}")
    if report.verdict == "broken":
        say(f"{held} what was sealed and {report.unproven:,} cannot be proven to be, {under}.")
    if report.expired or report.expired_why == WORD:
        say(
            f"{counted(report.expired, 'record', 'records')} from before {shown_time(report.expired_before_us)} "
            f"{'is' if report.expired == 1 else 'are'} no longer there: {plain(report.expired_why)}."
            + " Their roots prove that they were."
            * bool(report.expired)
        )
    if report.pending and report.verdict != "unproven":
        younger = counted(report.pending, "record is", "records are")
        say(f"{younger} younger than the last root ({shown_time(report.sealed_us)}).")
    if told := hint(report):
        say(plain(f"{told[0].upper()}{told[1:]}."))
    if not is_copy and any(one.kind == "missing" for one in (*report.wrong, *report.rows)):
        say("What is missing comes back where the log still has it: `tidegate rebuild` makes ClickHouse anew from it.")


def _show_verdict(report: Report, proven: str, is_copy: bool) -> None:
    overdue = counted(report.overdue, "record is", "records are")
    if report.verdict == "whole":
        say(f"[green]Whole[/]: {proven}.")
    elif report.verdict == "broken":
        count = len(report.wrong) + len(report.rows) + len(report.problems)
        say(f"[bold red]Broken[/]: {counted(count, 'thing is', 'things are')} wrong; the first:")
    elif report.overdue and is_copy:
        say(f"[yellow]Unproven[/]: {overdue} under no root; give the published file with --roots.")
    elif report.overdue:
        say(
            f"[yellow]Unproven[/]: {overdue} older than ten minutes and under no root; "
            "give the published file with --roots, or see why nothing is sealed."
        )
    else:
        say(f"[yellow]Unproven[/]: {plain(report.nothing)}.")
