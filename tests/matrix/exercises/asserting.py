"""How exercises assert. Counterparts: the exercises beside it."""

import json
from typing import Any, Final

from tests.matrix.cells import Cell
from tests.matrix.driving import RpcFailed, Wire

Outcome = str | None
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602


def text(result: Wire) -> str:
    """The first text of a tool result that is no error."""
    assert not result.get("isError"), result
    return str(result["content"][0]["text"])


def same(found: Any, offered: Any) -> None:
    """Equal down to the order of members and the spelling of numbers."""
    assert json.dumps(found) == json.dumps(offered), f"{found!r} is not {offered!r}"


def expected_meta(cell: Cell, offered: Wire) -> Wire:
    """A tool's `_meta`, which may name a resource by its URI."""
    meta = dict(offered["_meta"])
    if "ui" in meta:
        meta["ui"] = {**meta["ui"], "resourceUri": cell.uri(meta["ui"]["resourceUri"], "app")}
    return meta


class failing:
    """`with failing() as failure:` the block must raise; what it raised is in `failure`."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds or (RpcFailed,)
        self.error: Exception = AssertionError("did not fail")

    def __enter__(self) -> "failing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        assert kind is not None, "it was not refused"
        if isinstance(error, self._kinds):
            self.error = error
            return True
        return False

    @property
    def code(self) -> int:
        assert isinstance(self.error, RpcFailed), self.error
        return self.error.code

    @property
    def message(self) -> str:
        return str(self.error)

    @property
    def data(self) -> Any:
        assert isinstance(self.error, RpcFailed), self.error
        return self.error.data
