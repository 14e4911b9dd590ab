"""`python -m bench.sampled FILE edge --config …`: the `tidegate` command, sampled; FILE gets collapsed stacks.

A timer of CPU time interrupts the process (SIGPROF) and notes the main thread's Python stack. CPU time of other threads
falls on whatever the main thread does at that moment: use `perf` to tell threads apart.
"""

import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

INTERVAL_S: Final = 0.002
_DEPTH_MAX: Final = 60


class Sampler:
    """Counts stacks, outermost function first."""

    def __init__(self) -> None:
        self._stacks: Counter[str] = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._note)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def stop(self) -> str:
        """Collapsed stacks: "a;b;c count" per line."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        return "".join(f"{stack} {count}\n" for stack, count in self._stacks.most_common())

    def _note(self, _number: int, frame: FrameType | None) -> None:
        names: list[str] = []
        while frame is not None and len(names) < _DEPTH_MAX:
            code = frame.f_code
            names.append(f"{code.co_qualname} ({Path(code.co_filename).name}:{code.co_firstlineno})")
            frame = frame.f_back
        self._stacks[";".join(reversed(names))] += 1


def main() -> None:
    from tidegate_cli.main import main as tidegate

    target = Path(sys.argv[1])
    sys.argv = ["tidegate", *sys.argv[2:]]
    sampler = Sampler()
    sampler.start()
    try:
        tidegate()
    finally:
        target.write_text(sampler.stop())


if __name__ == "__main__":
    main()
