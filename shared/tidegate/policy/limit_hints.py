"""What is allowed in limits.yaml and seldom meant: a team that nothing else in the bundle has heard of. Pure.

Counterpart: `check.py` tells it beside what is wrong; it keeps no bundle from ruling, for groups come with tokens.
"""

import difflib
from collections.abc import Iterator, Sequence

import msgspec

from tidegate.errors import BundleFault, Problem
from tidegate.policy.budgets import LIMITS, read_limits
from tidegate.policy.bundle import CASES, ENTITIES, Bundle
from tidegate.policy.cases import load_cases
from tidegate.policy.grants import ANY
from tidegate.policy.rules import Rule, Uid, entities_in

_GROUP = "Group"


def strange_teams(bundle: Bundle, rules: Sequence[Rule]) -> list[Problem]:
    """Of limits; none is fatal. Never raises."""
    limits = read_limits(bundle.text(LIMITS)).limits if LIMITS in bundle.files else ()
    if not any(limit.teams for limit in limits):
        return []
    known = {name for kind, name in _named(bundle, rules) if kind == _GROUP}
    return [
        Problem(LIMITS, _sentence(team, known), limit.line, limit.id, False)
        for limit in limits
        for team in limit.teams
        if team not in known
    ]


def _named(bundle: Bundle, rules: Sequence[Rule]) -> Iterator[Uid]:
    """What grants, rules, cases and entities name."""
    for grant in bundle.grants.grants:
        yield from ((_GROUP, team) for team in grant.teams if team != ANY)
    for rule in rules:
        yield from rule.principal.entities
        yield from rule.mentions
    try:
        for case, _ in load_cases(bundle.text(CASES)):
            yield from ((_GROUP, group) for group in case.groups)
        for entity in msgspec.json.decode(bundle.text(ENTITIES) or "[]"):
            yield from entities_in([entity, entity.get("uid")])
    except (BundleFault, msgspec.DecodeError, AttributeError, TypeError):  # told where these files are checked
        return


def _sentence(team: str, known: set[str]) -> str:
    close = difflib.get_close_matches(team, sorted(known), 1, 0.6)
    meant = f"; did you mean '{close[0]}'?" if close else "; the limit is for nobody, unless tokens name it"
    return f"no grant, rule, case or entity names the group '{team}'{meant}"
