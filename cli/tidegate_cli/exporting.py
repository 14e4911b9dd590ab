"""The work of `tidegate export`: calls as lines of OCSF, JSON or CEF, to a file or to stdout.

A file appears when it is complete; it is its owner's alone. Stdout holds the lines and nothing else, progress is on
stderr where that is a terminal. Counterpart: `export_pages.py`.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import typer

from tidegate.cef import cef_line
from tidegate.errors import ConfigFault
from tidegate.ocsf.api_activity import encoded
from tidegate.settings import Settings
from tidegate_cli.export_pages import Row, Span, activity_of_row, pages
from tidegate_cli.options import live_settings
from tidegate_cli.reaching import reaching

Line = Callable[[Row], bytes]
Told = Callable[[int, int], None]
"""Called with the calls so far, and the time up to which they are out."""


def export_calls(config: Path, span: Span, form: str, output: Path | None) -> int:
    """The number of calls. Raises Fault."""
    settings = live_settings(config)
    span = msgspec.structs.replace(span, content=form == "jsonl").settled()
    try:
        with _target(output) as stream, _progress(span, output) as told:
            count = asyncio.run(_export(settings, span, LINES[form], stream, told))
    except BrokenPipeError:  # whoever read has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    typer.echo(_summary(count, span, settings, output), err=True)
    return count


async def _export(settings: Settings, span: Span, line: Line, stream: BinaryIO, told: Told) -> int:
    count = 0
    async with reaching(settings) as analytics:
        async for page in pages(analytics, span):
            stream.writelines([line(row) for row in page.rows])
            stream.flush()
            count += len(page.rows)
            told(count, page.reached_us)
    return count


def ocsf_line(row: Row) -> bytes:
    return encoded(activity_of_row(row)) + b"\n"


def syslog_line(row: Row) -> bytes:
    return cef_line(activity_of_row(row)).encode() + b"\n"


def json_line(row: Row) -> bytes:
    """The view's columns by their names; times as text, captured content as the JSON that it is."""
    columns = dict(row.columns)
    content = {name: _json(columns.pop(f"kept_{name}", "")) for name in ("arguments", "result", "inputs")}
    columns["is_erased"] = bool(columns["is_erased"])
    times = {
        "requested_at": _time(row.requested_us),
        "completed_at": _time(row.completed_us) if row.completed_us else None,
    }
    return msgspec.json.encode({**times, **columns, "findings": row.findings, **content}) + b"\n"


LINES: dict[str, Line] = {"ocsf": ocsf_line, "cef": syslog_line, "jsonl": json_line}


def _json(text: str) -> Any:
    """None where nothing was captured. What was captured before it could be checked stays a text."""
    if not text:
        return None
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return msgspec.Raw(text.encode())


def _time(time_us: int) -> str:
    whole, micro = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{micro:06}Z"


@contextlib.contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    """Stdout, or a draft beside the file that takes its place at the end. Raises ConfigFault."""
    if output is None:
        yield sys.stdout.buffer
        return
    if output.is_dir():
        raise ConfigFault(f"--output {output} is a directory; give the path of a file in it")
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigFault(
            f"--output {output} cannot be written ({error.strerror}); give a file in a directory of yours"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(span: Span, output: Path | None) -> Iterator[Told]:
    """A bar over the time that was asked for; none where stderr is no terminal, or the lines go to the same one."""
    if not sys.stderr.isatty() or (output is None and sys.stdout.isatty()):
        yield lambda _count, _reached: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 calls", total=span.until_us - span.since_us)
        yield lambda count, reached: bar.update(
            task, completed=reached - span.since_us, description=f"{count:,} calls, up to {_time(reached)[:19]}"
        )


def _summary(count: int, span: Span, settings: Settings, output: Path | None) -> str:
    text = (
        f"{count:,} call{'' if count == 1 else 's'} of {_time(span.since_us)[:19]} to {_time(span.until_us)[:19]} UTC"
    )
    if output is not None:
        text += f" in {output}"
    if not count and span.server and settings.servers and span.server not in settings.servers:
        text += f"; no server is named '{span.server}' here: there are {', '.join(sorted(settings.servers))}"
    return text
