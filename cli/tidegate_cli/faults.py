"""Finding the expected fault in what was raised: task groups wrap it, and other people's too."""

from tidegate.errors import Fault


def fault_in(error: BaseException) -> Fault | None:
    """The fault itself, or the first one of a group that holds faults alone; None where something else went wrong."""
    if isinstance(error, Fault):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [fault_in(inner) for inner in error.exceptions]
    return None if None in found else found[0]
