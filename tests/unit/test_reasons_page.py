"""Every reason that the edge refuses with stands in the documentation, and means something there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REASON = re.compile(r"[a-z]+(-[a-z]+)+")
WRITTEN = re.compile(r"`([a-z]+(?:-[a-z]+)+)`")
PLACES = {"refuse": 1, "_not_put": 4, "_ended": 3, "Verdict": 1}  # where these calls take a reason


def of(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and REASON.fullmatch(one.value):
            yield one.value


def reasons(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in PLACES and len(node.args) > PLACES[name]:
                yield from of(node.args[PLACES[name]])
            for keyword in node.keywords:
                if keyword.arg in ("reason", "code"):
                    yield from of(keyword.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and "REASON" in ast.unparse(node).partition("=")[0]:
            yield from of(node)


def test_each_reason_of_the_edge_and_of_the_rules_is_explained() -> None:
    files = [*(ROOT / "services" / "edge").rglob("*.py"), ROOT / "shared" / "tidegate" / "policy" / "verdict.py"]
    told = {reason for file in files for reason in reasons(ast.parse(file.read_text()))}
    assert {"arguments-unlike-schema", "task-arguments-not-kept", "gateway-busy", "uri-malformed"} <= told
    written = {word for page in (ROOT / "docs").glob("*.md") for word in WRITTEN.findall(page.read_text())}
    assert told - written == set()
