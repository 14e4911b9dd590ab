"""A bundle made ready to decide, in a thread beside calls. Counterpart: `releases.py`, which lets it rule.

Python gives a thread the interpreter for 5 ms at a time, so a loop that waits for it would stand still that long at
every step; while a bundle is made ready, threads take turns sooner. The collector looks at everything there is when so
much is made, and nothing runs meanwhile: it waits, and then leaves alone what was made, which stays. What Cedar and the
decoders do at once, they do without letting go: they are given little at a time.
"""

import gc
import sys
import threading
from dataclasses import dataclass
from typing import Final

from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.policy.budgeting import Budgeting
from tidegate.policy.bundle import INSPECTION, Bundle
from tidegate.policy.definition_rules import DEFINITIONS, DefinitionRules, load_definition_rules
from tidegate.policy.engine import Engine

TURN_S: Final = 0.0005


@dataclass(frozen=True)
class Prepared:
    """All that a bundle says, for any catalogue."""

    engine: Engine
    scanner: Scanner
    definitions: DefinitionRules
    budgeting: Budgeting


def prepared(bundle: Bundle) -> Prepared:
    """Raises BundleFault and whatever else is wrong with it. Blocks for about half a second per 2,000 rules."""
    with beside_calls:
        return Prepared(
            engine=Engine.build(bundle, (), {}),
            scanner=Scanner(load_inspection(bundle.files.get(INSPECTION, b""))),
            definitions=load_definition_rules(bundle.files.get(DEFINITIONS)),
            budgeting=Budgeting.of(bundle),
        )


class _BesideCalls:
    """While anybody is inside, threads take turns sooner and nothing is collected; of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._interval_s = sys.getswitchinterval()
        self._collects = gc.isenabled()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._interval_s, self._collects = sys.getswitchinterval(), gc.isenabled()
                sys.setswitchinterval(min(self._interval_s, TURN_S))
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                sys.setswitchinterval(self._interval_s)
                gc.freeze()  # cleared all the same once nobody refers to it; what refers to itself just then is lost
                if self._collects:
                    gc.enable()


beside_calls: Final = _BesideCalls()
