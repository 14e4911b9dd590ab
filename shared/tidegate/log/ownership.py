"""Exclusive ownership of a directory or file by one process: a lock that the kernel drops with the process."""

import fcntl
import os
from pathlib import Path

from tidegate.errors import LogUnavailable


class Ownership:
    """Held from construction until `release` or the process's end. Raises LogUnavailable naming the owner's pid."""

    def __init__(self, lock_file: Path, what: str) -> None:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise LogUnavailable(
                f"{what} is in use by process {pid}: one process owns it; stop that one, or point `data` elsewhere",
                code="log-owned",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
