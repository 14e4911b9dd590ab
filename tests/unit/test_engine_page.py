"""The limits and names that docs/policy-encoding.md states are the ones in force."""

from pathlib import Path

from tidegate.limits import APPROVAL_TTL_S, APPROVAL_TTL_S_MAX, JSON_DEPTH_MAX, POLICY_VALUES_MAX
from tidegate.policy.annotations import KNOWN
from tidegate.policy.arguments import RESERVED_KEYS
from tidegate.policy.circumstances import CIRCUMSTANCES
from tidegate.policy.labels import READ_PRIVATE, SUGGESTED

PAGE = (Path(__file__).parents[2] / "docs" / "policy-encoding.md").read_text()


def test_the_page_names_the_bounds_and_the_reserved_keys() -> None:
    assert f"more than {JSON_DEPTH_MAX} levels" in PAGE
    assert f"more than {POLICY_VALUES_MAX:,} values" in PAGE
    assert all(f"`{key}`" in PAGE for key in RESERVED_KEYS)


def test_the_page_names_every_annotation_circumstance_and_label() -> None:
    assert [name for name in KNOWN if f"| `@{name}(" not in PAGE] == []
    assert [name for name in CIRCUMSTANCES if f"| `context.{name}`" not in PAGE] == []
    assert [label for label in (*SUGGESTED, READ_PRIVATE) if f"`{label}`" not in PAGE] == []
    assert f"up to {APPROVAL_TTL_S_MAX // 86_400} days; without it, {APPROVAL_TTL_S // 60} minutes" in PAGE
