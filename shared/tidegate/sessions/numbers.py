"""Numbers of kept events: "<milliseconds>-<count>", as Redis gives them. They come back from clients. Pure."""

import re

_NUMBER = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)


def number_of(text: str) -> tuple[int, int] | None:
    """What compares as the events follow each other; None: it is no number."""
    found = _NUMBER.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None
