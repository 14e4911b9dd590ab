"""`python -m bench.watched FILE edge --config …`: the `tidegate` command with a watch on its event loop.

On SIGUSR1 it writes one line of JSON to FILE, a `Stood`, and begins anew: for how long the loop was held at most since
the last time, by the CPU clock of its thread (other processes that want the cores make no difference to it) and by the
wall clock, and which function was at work then. Counterpart: `stalls.py`.
"""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGUSR1
from types import FrameType
from typing import Any, Final

import msgspec
import uvloop

TICK_S: Final = 0.001
LOOKED_AT_S: Final = 0.008  # after so long without a tick, the stack is looked at
_FRAMES_MAX: Final = 60
_OURS: Final = ("tidegate", "tidegate_edge")


class Stood(msgspec.Struct):
    """What one stretch of time has shown. `turn` counts them."""

    turn: int
    held_ms: float  # CPU
    stood_ms: float  # wall
    where: str


class Watch:
    """Ticks on the loop; a thread of its own looks at the loop's stack when no tick comes."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._turn = 0
        self._held_s = self._stood_s = 0.0
        self._where = self._seen = ""
        self._last_s = time.perf_counter()
        self._cpu_s = 0.0
        self._main = threading.main_thread().ident or 0

    def start(self, loop: Any) -> None:
        self._loop = loop
        loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._loop.add_signal_handler(SIGUSR1, self._tell)
        self._last_s, self._cpu_s = time.perf_counter(), time.thread_time()
        threading.Thread(target=self._look, name="watch", daemon=True).start()
        self._tick()

    def _tick(self) -> None:
        now_s, cpu_s = time.perf_counter(), time.thread_time()
        if cpu_s - self._cpu_s > self._held_s:
            self._held_s, self._where = cpu_s - self._cpu_s, self._seen
        self._stood_s = max(self._stood_s, now_s - self._last_s - TICK_S)
        self._last_s, self._cpu_s, self._seen = now_s, cpu_s, ""
        self._loop.call_later(TICK_S, self._tick)

    def _tell(self) -> None:
        self._turn += 1
        told = msgspec.json.encode(Stood(self._turn, self._held_s * 1e3, self._stood_s * 1e3, self._where))
        self._target.with_suffix(".new").write_bytes(told)
        self._target.with_suffix(".new").replace(self._target)
        self._held_s = self._stood_s = 0.0
        self._where = ""

    def _look(self) -> None:
        while True:
            time.sleep(TICK_S * 2)
            if time.perf_counter() - self._last_s > LOOKED_AT_S:
                frame = sys._current_frames().get(self._main)
                self._seen = self._seen or _named(frame)


def _named(frame: FrameType | None) -> str:
    """The innermost function of ours, and what it had called."""
    inner = ""
    for _ in range(_FRAMES_MAX):
        if frame is None:
            break
        name = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        if any(f"/{part}/" in frame.f_code.co_filename for part in _OURS):
            return f"{name} {inner}".strip()
        inner, frame = inner or name, frame.f_back
    return inner


def watched(make: Callable[[], Any], watch: Watch) -> Callable[[], Any]:
    def made() -> Any:
        loop = make()
        watch.start(loop)
        return loop

    return made


def main() -> None:
    watch = Watch(Path(sys.argv[1]))
    sys.argv = ["tidegate", *sys.argv[2:]]
    uvloop.new_event_loop = watched(uvloop.new_event_loop, watch)

    from tidegate_cli.main import main as tidegate

    tidegate()


if __name__ == "__main__":
    main()
