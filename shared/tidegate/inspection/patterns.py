"""What a pattern is: the compiled-in packs and inspection.yaml both yield these."""

from typing import Literal

import msgspec

Action = Literal["allow", "alert", "mask", "block"]
Record = Literal["mask", "keep"]
Severity = Literal["info", "low", "medium", "high", "critical"]

SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")
ACTIONS: tuple[Action, ...] = ("allow", "alert", "mask", "block")


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    """One pattern with its action per direction; `allow` means that the direction is not looked at."""

    id: str
    pattern: str
    description: str = ""
    severity: Severity = "medium"
    ignore_case: bool = False
    validator: str = ""  # a name of `validators.VALIDATORS`
    arguments: Action = "alert"
    result: Action = "alert"
    record: Record = "mask"  # what an event may hold where the action is `alert`: the match itself only with `keep`
    where: str = "built in"  # for error sentences: "$.patterns[3]"


class InspectionRules(msgspec.Struct, frozen=True):
    """Everything that inspection.yaml asks for, packs included; ids are unique and every pattern compiles."""

    patterns: tuple[Pattern, ...] = ()
