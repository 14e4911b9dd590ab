"""The limits that docs/policy-encoding.md states are the ones in force."""

from pathlib import Path

from tidegate.limits import JSON_DEPTH_MAX, POLICY_VALUES_MAX
from tidegate.policy.arguments import RESERVED_KEYS

PAGE = (Path(__file__).parents[2] / "docs" / "policy-encoding.md").read_text()


def test_the_page_names_the_bounds_and_the_reserved_keys() -> None:
    assert f"more than {JSON_DEPTH_MAX} levels" in PAGE
    assert f"more than {POLICY_VALUES_MAX:,} values" in PAGE
    assert all(f"`{key}`" in PAGE for key in RESERVED_KEYS)
