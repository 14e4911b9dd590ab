"""Long work that is done in turns with other work: a generator that yields where others may have theirs.

What it yields is None, or a function that holds no interpreter lock while it works, so that a thread can call it: its
result is sent back. Who has nobody waiting drives it by `at_once`. Counterpart: the edge's `taking_turns.py`.
"""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
Job = Callable[[], Any]
Turns = Generator[Job | None, Any, T]


def at_once(work: Turns[T]) -> T:
    """All of it, here and now."""
    result: Any = None
    while True:
        try:
            job = work.send(result)
        except StopIteration as ended:
            value: T = ended.value
            return value
        result = None if job is None else job()
