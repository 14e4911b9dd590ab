"""What rules may know of a call beside its principal, its tool and its arguments. Pure."""

import msgspec


class Facts(msgspec.Struct, frozen=True):
    """The circumstances of one call. What is not known is at its default, and absent from what Cedar is given."""

    now_us: int = 0
    address: str = ""  # of the caller, textual; "": unknown
    taint: tuple[str, ...] = ()  # labels whose content the session has read, sorted
    protocol: str = ""  # the MCP revision that the client speaks


NO_FACTS = Facts()
