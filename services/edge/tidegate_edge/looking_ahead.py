"""What a principal may see, found out a few things at a time before its lists are made.

Of a new bundle that takes long, thousands of tools a tenth of a second; calls go on meanwhile. Counterpart: `lists.py`
makes lists of what is known by then.
"""

import asyncio
from typing import Final

from tidegate.claims import Principal
from tidegate_edge.lists import LISTS_KEPT_MAX, items_at
from tidegate_edge.ruling import Ruling

AT_ONCE: Final = 32  # things: a millisecond's work or two where nothing is known of them yet


async def look_ahead(ruling: Ruling, principal: Principal, door: str) -> None:
    """Once per principal's facts and door; from then on the ruling knows."""
    key = (principal.key, door)
    if key in ruling.looked:
        return
    for number, item in enumerate(items_at(ruling.catalog, door), 1):
        ruling.is_visible(principal, item)
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    if len(ruling.looked) >= LISTS_KEPT_MAX:
        ruling.looked.clear()
    ruling.looked.add(key)
