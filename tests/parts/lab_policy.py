"""The policy that the cluster tests run under, made for the servers that a test has."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tidegate.policy.bundle import Bundle, bundle_of

TOOLS: Final = ("echo", "note")


def lab_bundle(
    servers: Sequence[str] = ("up",),
    *,
    paths: str = "/srv/*",
    version: str = "1",
    more: Mapping[str, str] | None = None,
    extra_rules: str = "",
) -> Bundle:
    """Members of eng may `echo` on all servers, where a path that is given fits `paths`; writers may `note` as well.

    `more` maps further tools ("time/get_current_time") to the type of their arguments; eng may call them.
    """
    echo = [f'Action::"{server}/echo"' for server in servers]
    note = [f'Action::"{server}/note"' for server in servers]
    others = [f'Action::"{tool}"' for tool in more or {}]
    granted = ", ".join([*echo, *others])
    rules = f"""
@id("eng-echo")
permit (principal in Group::"eng", action in [{granted}], resource);

@id("writers-note")
permit (principal in Group::"writers", action in [{", ".join(note)}], resource);

@id("only-below")
@reason("Only paths like {paths} may be asked for.")
forbid (principal, action in [{", ".join([*echo, *note])}], resource)
when {{ context.args has path && !(context.args.path like "{paths}") }};
{extra_rules}
"""
    text = "{ text: String, path?: String, size?: Long, nonce?: String }"
    typed = {**{f"{server}/{tool}": text for server in servers for tool in TOOLS}, **(more or {})}
    schema = "entity Group in [Group];\nentity User in [Group];\nentity Server { labels: Set<String> };\n"
    schema += 'action "call";\naction "sensitive" in ["call"];\naction "egress" in ["call"];\n'
    for tool, arguments in typed.items():
        schema += (
            f'action "{tool}" in ["call"] appliesTo {{ principal: [User], resource: [Server], '
            f"context: {{ agent: {{ id: String }}, args: {arguments} }} }};\n"
        )
    inspection = (
        "packs: [secrets]\n"
        "patterns:\n"
        "  - {id: badge, pattern: '\\bBDG-[A-Z]{2}\\d{8}\\b', severity: medium, arguments: allow, result: mask}\n"
    )
    files = {
        "manifest.json": msgspec.json.encode({"v": 1, "name": "lab", "version": version}).decode(),
        "policies/lab.cedar": rules,
        "schema.cedarschema": schema,
        "inspection.yaml": inspection,
    }
    return bundle_of({path: content.encode() for path, content in files.items()})
