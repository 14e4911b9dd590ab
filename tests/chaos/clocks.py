"""Wall clocks of single processes, set from outside: a library preloaded into them, compiled here (`clocks.c`).

Monotonic time is left alone, as a step of the wall clock leaves it. Where there is no C compiler there are no such
clocks, and `maker` says so.
"""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("clocks.c")
_OFFSET: Final = struct.Struct("=q")


class Clock:
    """Of the processes that are started with `environment`."""

    def __init__(self, library: Path, file: Path) -> None:
        file.write_bytes(_OFFSET.pack(0))
        with file.open("r+b") as opened:
            self._mapped = mmap.mmap(opened.fileno(), _OFFSET.size)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(file)}

    def set(self, ahead_s: float) -> None:
        """So many seconds ahead of the machine's; less than 0: behind."""
        _OFFSET.pack_into(self._mapped, 0, int(ahead_s * 1e9))


def compiled(directory: Path) -> Path | None:
    """The library; None where no C compiler is installed."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = directory / "clocks.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return library
