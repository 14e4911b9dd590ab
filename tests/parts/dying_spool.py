"""A process that is killed at every step that a spool and its shipper make on the disk, one after the other.

Run as a program with a directory: it forks a child for each step, which kills itself there (SIGKILL), then another that
recovers; what both delivered and were promised is compared. Prints what is wrong as JSON. It forks, so it has no
threads and no engine of its own.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidegate.log.port import Record
from tidegate.log.spool import Shipper, Spool

STEPS = ("open", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "unlink", "replace", "pread")
BATCHES, PER_BATCH, SIZE = 6, 2, 80
BYTES_MAX = 48 * 1024  # so small that segments end and go on the way
_write = os.write
_open = os.open


class Place:
    """Where records are shipped to: a file, a line for each. Being given them and having kept them are steps, too."""

    def __init__(self, file: Path, step: Any) -> None:
        self._fd = _open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._step = step

    def append(self, records: Sequence[Record]) -> None:
        self._step()
        for record in records:
            _write(self._fd, record.key + b" " + hashlib.sha256(record.value or b"").hexdigest().encode() + b"\n")
        self._step()

    def close(self) -> None: ...


class Steps:
    """Counts; kills this process at the given step."""

    def __init__(self, killed_at: int) -> None:
        self.count = 0
        self._killed_at = killed_at

    def __call__(self) -> None:
        self.count += 1
        if self.count == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str) -> None:
        """Before and after every call of this function of `os`."""
        inner = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            self()
            answer = inner(*given, **named)
            self()
            return answer

        setattr(os, name, call)


def live(directory: Path, killed_at: int, batches: int, *, closes: bool) -> int:
    """Append and ship; the steps that were made. Closing waits for the shipper's idle time."""
    steps = Steps(killed_at)
    for name in STEPS:
        steps.around(name)
    promised = _open(directory / "promised", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    spool = Spool(directory / "spool", BYTES_MAX, edge="edge")
    shipper = Shipper(spool, Place(directory / "delivered", steps), linger_s=0)
    shipper.start()
    for batch in range(batches):
        seqs = range(batch * PER_BATCH + 1, (batch + 1) * PER_BATCH + 1)
        records = [
            Record("calls", f"{spool.writer} {seq}".encode(), f"{spool.writer}{seq}".encode() * SIZE) for seq in seqs
        ]
        spool.append(records)
        _write(promised, b"".join(record.key + b"\n" for record in records))
        if batch % 3 == 2 and not shipper.drain(20):
            os._exit(3)
    if not shipper.drain(20):
        os._exit(3)
    if closes:
        shipper.close()
        spool.close()
    return steps.count


def forked(directory: Path, killed_at: int, batches: int, *, closes: bool) -> tuple[int, int]:
    """The exit status of a child that lives so, and its steps."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _write(writing, str(live(directory, killed_at, batches, closes=closes)).encode())
            os._exit(0)
        except BaseException as error:
            _write(2, f"{killed_at}: {error!r}\n".encode())
        os._exit(2)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading) as told:
        steps = told.read()
    return status, int(steps or 0)


def wrong_in(directory: Path) -> list[str]:
    """Promised and not delivered; out of order; two contents under one number."""
    promised = (directory / "promised").read_text().splitlines()
    seen: dict[str, str] = {}
    order: dict[str, list[int]] = {}
    wrong = []
    for line in (directory / "delivered").read_text().splitlines():
        key, _, digest = line.rpartition(" ")
        if seen.setdefault(key, digest) != digest:
            wrong.append(f"{key} was delivered with two contents")
        elif key not in order.setdefault("seen", []):  # first deliveries alone: at least once means again is allowed
            order["seen"].append(key)  # type: ignore[arg-type]
            writer, _, seq = key.partition(" ")
            order.setdefault(writer, []).append(int(seq))
    wrong += [f"{key} was promised and never delivered" for key in promised if key not in seen]
    for writer, seqs in order.items():
        if writer != "seen" and seqs != list(range(1, len(seqs) + 1)):
            wrong.append(f"{writer} came as {seqs}")
    return wrong


def main(root: Path) -> None:
    (root / "whole").mkdir()
    status, steps = forked(root / "whole", 0, BATCHES, closes=True)
    wrong = {"whole": wrong_in(root / "whole")} if status == 0 else {"whole": [f"status {status}"]}
    for at in range(1, steps + 1):
        directory = root / str(at)
        directory.mkdir()
        killed, _ = forked(directory, at, BATCHES, closes=True)
        again, _ = forked(directory, 0, 2, closes=False)
        found = wrong_in(directory)
        if killed not in (0, signal.SIGKILL) or again != 0:
            found.append(f"ended with {killed}, recovered with {again}")
        wrong[str(at)] = found
    print(json.dumps({"steps": steps, "wrong": {at: found for at, found in wrong.items() if found}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
