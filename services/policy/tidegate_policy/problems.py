"""Errors of the management API as problem documents (RFC 9457): a stable code, and a sentence that says what to do."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from tidegate.errors import BundleFault, CallerFault, Fault, LogUnavailable, Problem


class ApiFault(Fault):
    """A refusal with its own HTTP status."""

    def __init__(self, status: int, code: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence, code=code)
        self.status = status
        self.headers = dict(headers or {})


class BundleProblem(BaseModel):
    """One thing wrong in a bundle."""

    path: str
    line: int = Field(description="From 1; 0 where unknown")
    rule: str
    sentence: str
    fatal: bool


class ProblemDocument(BaseModel):
    """RFC 9457. `code` is stable; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    problems: list[BundleProblem] = []


def shown(problem: Problem) -> BundleProblem:
    return BundleProblem(
        path=problem.path, line=problem.line, rule=problem.rule, sentence=problem.sentence, fatal=problem.fatal
    )


_TITLES = {
    400: "Bad request",
    401: "Sign in",
    403: "Not permitted",
    404: "Not found",
    409: "Conflict",
    413: "Too large",
    422: "Not acceptable as it is",
    503: "Not available now",
}


def problem_response(fault: Fault) -> Response:
    """The answer that a fault gets."""
    match fault:
        case ApiFault():
            status, headers = fault.status, fault.headers
        case BundleFault() | CallerFault():
            status, headers = 422, {}
        case LogUnavailable():
            status, headers = 503, {"Retry-After": "1"}
        case _:
            status, headers = 500, {}
    problems = [shown(problem) for problem in fault.problems] if isinstance(fault, BundleFault) else []
    document = ProblemDocument(
        title=_TITLES.get(status, "Error"), status=status, detail=fault.sentence, code=fault.code, problems=problems
    )
    return JSONResponse(document.model_dump(), status, headers, "application/problem+json")


class ProblemRoute(APIRoute):
    """A route whose faults are problem documents, in whichever app it is mounted."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except Fault as fault:
                return problem_response(fault)
            except RequestValidationError as error:
                return problem_response(ApiFault(422, "request-malformed", _first(error)))
            except HTTPException as error:
                return problem_response(ApiFault(error.status_code, "request-refused", str(error.detail)))

        return guarded


def _first(error: RequestValidationError) -> str:
    """The first complaint, without the value that was sent."""
    found = error.errors()[0]
    where = ".".join(str(step) for step in found.get("loc", ()))
    return f"{where}: {found.get('msg', 'is malformed')}"


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ProblemDocument,
        "description": _TITLES[status],
        "content": {"application/problem+json": {}},
    }
    for status in (401, 403, 422, 503)
}
"""Every route documents these."""


def not_found(what: str) -> dict[int | str, dict[str, Any]]:
    return {404: {"model": ProblemDocument, "description": what, "content": {"application/problem+json": {}}}}
