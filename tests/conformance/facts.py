"""What the fixtures answer (`everything.json`), and the rules of asking that they share. Imports the standard library
alone: the fixture of the handshake era runs in an environment of its own.

A round asks for several answers at once; a tool may have more rounds than one. Which round is next follows from the
state, never from memory.
"""

import json
from pathlib import Path
from typing import Any, Final

FACTS: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("everything.json").read_text())
PAUSE_S: Final = 0.05
NEEDED: Final = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}


def filled(value: Any, arguments: dict[str, str]) -> Any:
    """`value` with each `{name}` in its strings replaced by that argument."""
    match value:
        case str():
            for name, argument in arguments.items():
                value = value.replace(f"{{{name}}}", argument)
            return value
        case dict():
            return {key: filled(part, arguments) for key, part in value.items()}
        case list():
            return [filled(part, arguments) for part in value]
        case _:
            return value


def told(prefix: str, answers: dict[str, Any]) -> str:
    """The answers as a tool tells them: `action=…, content=…` of a user, the text of a model, the roots of a client."""
    return prefix + "; ".join(_told(answer) for answer in answers.values())


def _told(answer: dict[str, Any]) -> str:
    if "action" in answer:
        return f"action={answer['action']}, content={json.dumps(answer.get('content'))}"
    if "roots" in answer:
        return ", ".join(root["uri"] for root in answer["roots"])
    content = answer["content"]
    return " ".join(block.get("text", "") for block in (content if isinstance(content, list) else [content]))


def content_of(uri: str) -> dict[str, Any] | None:
    """What a read of `uri` answers, templates included; None for what there is not."""
    fixed = FACTS["contents"].get(uri)
    if fixed is not None:
        return {"uri": uri, **fixed}
    start, end = "test://template/", "/data"
    if uri.startswith(start) and uri.endswith(end) and len(uri) > len(start) + len(end):
        name = uri[len(start) : -len(end)]
        data = {"id": name, "templateTest": True, "data": f"Data for ID: {name}"}
        return {"uri": uri, "mimeType": "application/json", "text": json.dumps(data)}
    return None


def completed(typed: str) -> dict[str, Any]:
    """The completion of what was typed so far."""
    values = [value for value in FACTS["completions"] if value.startswith(typed)]
    return {"values": values, "total": len(values), "hasMore": False}
