"""Names and sets in the configuration file: what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tidegate.errors import ConfigFault
from tidegate.settings import Settings
from tidegate.settings_file import load_settings

SERVERS = {"files": {"url": "http://127.0.0.1:1/mcp"}, "wiki": {"url": "http://127.0.0.1:2/mcp"}}
READ = {"server": "files", "tool": "read"}


def load(at: Path, **more: Any) -> Settings:
    file = at / "tidegate.yaml"
    file.write_text(yaml.safe_dump({"servers": SERVERS, **more}))
    return load_settings(file)


def test_names_and_sets_are_read(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        naming={"prefix": "collision", "separator": ".", "length_max": 40, "names": {"files/read": "open"}},
        sets={"ops": {"tools": [{**READ, "arguments": {"path": "/x"}}], "prompts": ["wiki"], "resources": ["files"]}},
    )
    assert settings.naming.names == {"files/read": "open"}
    assert settings.sets["ops"].tools[0].arguments == {"path": "/x"}
    assert settings.doors == ("", "files", "wiki", "sets/ops")
    assert settings.audiences == tuple(
        f"http://127.0.0.1:8080{path}" for path in ("/mcp", "/mcp/files", "/mcp/wiki", "/mcp/sets/ops")
    )


@pytest.mark.parametrize(
    ("naming", "sentence"),
    [
        ({"prefix": "allways"}, r"\$\.naming\.prefix"),
        ({"separator": "-"}, r"\$\.naming\.separator: expected 1 to 8 of .* got '-'"),
        ({"separator": "x1"}, r"\$\.naming\.separator"),
        ({"separator": ""}, r"\$\.naming\.separator"),
        ({"separator": "/_"}, r"\$\.naming\.separator"),
        ({"length_max": 31}, r"\$\.naming\.length_max: expected 32 to 128, got 31"),
        ({"names": {"read": "x"}}, r"\$\.naming\.names: 'read' is not server/tool"),
        ({"names": {"filse/read": "x"}}, r"no server 'filse'; did you mean 'files'\?"),
        ({"names": {"files/read": "a b"}}, r"\$\.naming\.names\.files/read: a shown name is 1 to 64 of .*, got 'a b'"),
        ({"names": {"files/read": "x" * 65}}, "a shown name is 1 to 64"),
        ({"names": {"files/read": "x", "wiki/y": "x"}}, "'files/read' is named 'x', too; names must differ"),
        ({"prefixes": "none"}, r"\$\.naming\.prefixes: unknown key; did you mean 'prefix'\?"),
    ],
)
def test_wrong_names_are_refused_with_the_place_and_the_way_out(tmp_path: Path, naming: Any, sentence: str) -> None:
    with pytest.raises(ConfigFault, match=sentence):
        load(tmp_path, naming=naming)


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({"Ops": {"tools": [READ]}}, r"\$\.sets\.Ops: a set's name is 1 to 32 of"),
        ({"ops": {}}, r"\$\.sets\.ops: the set is empty; list tools"),
        (
            {"ops": {"tools": [{"server": "file", "tool": "x"}]}},
            r"tools\[0\]\.server: no server 'file'; did you mean 'files'\?",
        ),
        (
            {"ops": {"tools": [{"server": "files", "tool": ""}]}},
            r"\$\.sets\.ops\.tools\[0\]\.tool: give the tool's name",
        ),
        ({"ops": {"tools": [{**READ, "name": "a/b"}]}}, r"tools\[0\]\.name: a shown name is"),
        (
            {"ops": {"tools": [READ, {"server": "wiki", "tool": "read"}]}},
            r"tools\[1\]: 'read' is the name of files/read, too",
        ),
        ({"ops": {"prompts": ["wikki"]}}, r"\$\.sets\.ops\.prompts\[0\]: no server 'wikki'; did you mean 'wiki'\?"),
        ({"ops": {"resources": ["x"]}}, r"\$\.sets\.ops\.resources\[0\]: no server 'x'"),
        ({"ops": {"tools": [{**READ, "argument": {}}]}}, "unknown key; did you mean 'arguments'"),
    ],
)
def test_wrong_sets_are_refused_with_the_place_and_the_way_out(tmp_path: Path, sets: Any, sentence: str) -> None:
    with pytest.raises(ConfigFault, match=sentence):
        load(tmp_path, sets=sets)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "servers: {b: {command: [y]}, a: {command: [x], process: per-principle}}",
            "$.servers.a.process: 'per-principle' is none of per-principal, shared; did you mean 'per-principal'?",
        ),
        ("naming: {prefix: sometimes}", "$.naming.prefix: 'sometimes' is none of always, collision, none"),
        (
            "servers: {a: {command: [x]}}\nrules: [{server: a}, {server: a, durability: spol}]",
            "$.rules[1].durability: 'spol' is none of async, spool, strict, strict-or-spool; did you mean 'spool'?",
        ),
        ("listen: 8192", "$.listen: expected text, got a whole number; for example listen: 127.0.0.1:8080"),
        (
            "servers: {a: {command: [x]}, b: {command: [y], labels: x}}",
            "$.servers.b.labels: expected a list, got text; for example labels: [one, two]",
        ),
        (
            "servers: {a: {url: 'http://a'}, b: {command: [y], env: {ONE: x, THE TWO: 2}}}",
            "$.servers.b.env.THE TWO: expected text, got a whole number; put it in quotes",
        ),
        (
            "sets: {a: {tools: []}, b: {tools: [{server: a, tool: x}, {server: 3}]}}",
            "$.sets.b.tools[1].server: expected text, got a whole number; put it in quotes",
        ),
        ("servers: {7: {command: [x]}}", "$.servers: keys are text; put the one that is a whole number in quotes"),
        ("servers: {a: {command: [x]}, b: }", "$.servers.b: expected keys and values, got nothing"),
    ],
)
def test_a_value_that_can_not_be_is_told_with_its_key_and_what_can(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text(text)
    with pytest.raises(ConfigFault) as fault:
        load_settings(file)
    assert str(fault.value) == f"{file}: {told}"


def test_an_unknown_key_is_told_with_the_server_that_has_it(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text("servers: {a: {command: [x]}, b: {command: [y], label: [z]}}")
    with pytest.raises(ConfigFault, match=r"\$\.servers\.b\.label: unknown key; did you mean 'labels'\?"):
        load_settings(file)


@pytest.mark.parametrize("tenant", ["acme|eu", "", "a b", "x" * 65, "acme/eu"])
def test_a_tenant_s_name_can_stand_in_every_key(tmp_path: Path, tenant: str) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text(f"tenant: {tenant!r}\n")
    with pytest.raises(ConfigFault, match=r"\$.tenant"):
        load_settings(file, {})
