"""The law of a bundle's entities: read some at a time, they are refused where Cedar refuses all at once."""

import json

from cedarpy import _internal as cedar
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.errors import BundleFault
from tidegate.policy.entities import open_entities

PARENTS = st.lists(st.lists(st.integers(0, 8), max_size=2), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(PARENTS)
def test_groups_in_themselves_are_refused_as_cedar_refuses_them(parents: list[list[int]]) -> None:
    def group(number: int) -> dict[str, str]:
        return {"type": "Group", "id": str(number)}

    text = json.dumps(
        [{"uid": group(n), "attrs": {}, "parents": [group(one) for one in of]} for n, of in enumerate(parents)]
    )
    refused = []
    for read in (cedar.Entities.from_json_str, open_entities):
        try:
            read(text)
            refused.append(False)
        except (ValueError, BundleFault):
            refused.append(True)
    assert refused[0] == refused[1]
