"""A command of the command line, carried out in this process: what it says and its status, without a start of Python.

Rule: for commands that ask and end. What runs until it is stopped, reads a terminal or opens ClickHouse itself needs a
process of its own. No two at once: the directory and the environment are the process's.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tidegate_cli.main import main


def tidegate(
    *words: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`tidegate WORDS`, as `subprocess.run` would tell of it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    with (
        _place(cwd, environment or {}, words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        ThreadPoolExecutor(1, "command") as thread,  # where no event loop runs
    ):
        status = thread.submit(_status).result()
    return subprocess.CompletedProcess(["tidegate", *words], status, _told(out), _told(err))


def _status() -> int:
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


@contextlib.contextmanager
def _place(cwd: Path, environment: Mapping[str, str], words: tuple[str, ...]) -> Iterator[None]:
    before, arguments, stdin = dict(os.environ), sys.argv, sys.stdin
    with contextlib.chdir(cwd):
        os.environ.update(environment)
        sys.argv, sys.stdin = ["tidegate", *words], io.StringIO()
        try:
            yield
        finally:
            sys.argv, sys.stdin = arguments, stdin
            os.environ.clear()
            os.environ.update(before)


def _told(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
