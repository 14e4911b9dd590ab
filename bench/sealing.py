"""What sealing personal parts adds to an event: microseconds of CPU, and bytes, by the size of what is captured.

`python -m bench.sealing`: one row per size; `encode` is what the chain does to the event anyway.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tidegate.chain import Chain
from tidegate.events import CallRequested, DecisionInputs, Sealed
from tidegate.ids import now_us, uuid7
from tidegate.privacy.keys import Lock, SubjectKey

SIZES: Final = (100, 1_000, 10_000, 65_536)


def request(captured_bytes: int) -> CallRequested:
    """A call's request that keeps so many bytes of arguments."""
    at_us = now_us()
    arguments = msgspec.Raw(msgspec.json.encode({"text": "x" * captured_bytes}))
    login = "alice.liddell@example.com"
    sealed = Sealed(issuer="https://idp.example.com", subject=uuid7(), login=login, arguments=arguments)
    return CallRequested(
        id=uuid7(),
        time_us=at_us,
        tenant="acme",
        region="eu",
        call_id=uuid7(),
        root_call_id=uuid7(),
        requested_us=at_us,
        subject_id="a" * 32,
        agent="claude-code",
        session_id=uuid7(),
        method="tools/call",
        server="git",
        target="git_log",
        mode="spool",
        decision="allow",
        rules=("allow-git",),
        inputs=DecisionInputs(bundle="b" * 64, release=3, groups=("eng", "oncall"), now_us=at_us),
        sealed=sealed,
    )


def microseconds(work: Callable[[], object], budget_s: float) -> float:
    """CPU of one execution: the least mean of five runs."""
    work()
    least, runs = float("inf"), 5
    for _ in range(runs):
        count, began, until = 0, time.process_time(), time.process_time() + budget_s / runs
        while time.process_time() < until:
            work()
            count += 1
        least = min(least, (time.process_time() - began) / count)
    return least * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU seconds for each number (default: 0.5)")
    seconds = min(max(parser.parse_args().seconds, 0.05), 5.0)
    lock = Lock(SubjectKey.generate("acme", "a" * 32, now_us()))
    widths = (10, 11, 22, 10, 14, 8)
    print(row(widths, ("captured", "encode µs", "sealed and encoded µs", "added µs", "stored bytes", "plain")))
    for size in SIZES:
        event = request(size)

        def plain(event: CallRequested = event) -> int:
            return len(Chain("w").seal(event).value or b"")

        def sealed(event: CallRequested = event) -> int:
            done = msgspec.structs.replace(event, sealed=lock.seal(event.sealed))
            return len(Chain("w").seal(done).value or b"")

        before_us, after_us = microseconds(plain, seconds), microseconds(sealed, seconds)
        told = (f"{size:,}", f"{before_us:.1f}", f"{after_us:.1f}", f"{after_us - before_us:.1f}")
        print(row(widths, (*told, f"{sealed():,}", f"{plain():,}")))


def row(widths: Sequence[int], cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for width, cell in zip(widths, cells, strict=True))


if __name__ == "__main__":
    main()
