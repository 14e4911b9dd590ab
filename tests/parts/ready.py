"""Everything that tests download, made before they run: `python -m tests.parts.ready`, which `make test` calls.

Files of tests run at once; so none waits within its own time for what another one installs.
"""

import sys
import time
from collections.abc import Callable
from typing import Final

from tests.parts import kafka, node, sdk130
from tests.parts.processes import PartMissing

PARTS: Final[dict[str, Callable[[], object]]] = {
    "Kafka": kafka.install,
    "Node and its packages": node.home,
    "the SDK of the handshake era": sdk130.python,
}


def main() -> int:
    """Exit code 1 where a part is missing: its tests will say so again."""
    missing = False
    for name, install in PARTS.items():
        began = time.monotonic()
        try:
            install()
        except PartMissing as fault:
            missing = True
            print(f"{name}: {fault}", file=sys.stderr)
        else:
            took = time.monotonic() - began
            print(f"{name}: ready" + (f" ({took:.0f} s)" if took >= 1 else ""), file=sys.stderr, flush=True)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
