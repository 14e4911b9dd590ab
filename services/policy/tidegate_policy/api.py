"""The management API, to be mounted under /api/v1. Every route needs an administrator's token."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPBearer

from tidegate.errors import BundleFault
from tidegate.limits import BUNDLE_BYTES_MAX
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate_policy.access import Access
from tidegate_policy.erasure import Eraser
from tidegate_policy.models import (
    Erase,
    ErasureView,
    Impose,
    Imposed,
    OneLine,
    QuarantineView,
    erasure_view,
    quarantine_view,
)
from tidegate_policy.problems import REFUSALS, ApiFault, ProblemRoute, not_found, shown
from tidegate_policy.publish import Publisher, Terms, check_ring
from tidegate_policy.quarantine import Warden
from tidegate_policy.release_models import (
    BundleContent,
    BundleView,
    EdgeView,
    Made,
    Published,
    ReleaseView,
    StatusView,
    bundle_content,
)
from tidegate_policy.release_requests import Promote, PublishOptions, RollBack
from tidegate_policy.rings import bundle_views, edge_view, release_view, ring_warnings, status_view
from tidegate_policy.state import ControlPlane


async def _actor(request: Request) -> str:
    """The subject id of the administrator whom `Access` let in."""
    return str(request.state.principal.subject_id)


Actor = Annotated[str, Depends(_actor)]
_BEARER = HTTPBearer(auto_error=False, description="A token for {public_url}/api/v1 of a member of an admin group")
CANONICAL = "application/vnd.tidegate.bundle+json"
_PAGE = Annotated[int, Query(ge=1, le=1_000, description="At most so many, newest first")]
_BUNDLE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "object", "additionalProperties": {"type": "string"}}},
                },
                "example": {"files": {"manifest.json": "…", "policies/tools.cedar": "…"}},
            },
            CANONICAL: {"schema": {"type": "string", "format": "binary", "description": "A bundle's canonical bytes"}},
        },
    }
}


class _Files(msgspec.Struct, forbid_unknown_fields=True):
    files: dict[str, str]


def management_router(
    access: Access,
    state: ControlPlane,
    publisher: Publisher,
    warden: Warden,
    eraser: Eraser,
    require_ready: Callable[[], Awaitable[None]],
    clock: Callable[[], int],
) -> APIRouter:
    """`require_ready` raises a fault while the state is not complete yet."""
    router = APIRouter(
        route_class=ProblemRoute,
        responses=REFUSALS,
        dependencies=[Depends(_BEARER), Depends(access), Depends(require_ready)],
    )
    _add_bundles(router, state, publisher)
    _add_releases(router, state, publisher)
    _add_reports(router, state, clock)
    _add_quarantines(router, state, warden, eraser, clock)
    _add_erasures(router, state, eraser)
    return router


def _add_bundles(router: APIRouter, state: ControlPlane, publisher: Publisher) -> None:
    @router.post(
        "/bundles",
        status_code=201,
        tags=["bundles"],
        summary="Check, sign and release a bundle",
        openapi_extra=_BUNDLE_BODY,
    )
    async def post_bundle(
        request: Request, response: Response, actor: Actor, options: Annotated[PublishOptions, Query()]
    ) -> Published:
        """The files as JSON, or canonical bytes. 200 where that is in force in the ring already, 201 for a new release.

        A canary rules for whom its percent, regions, groups and edge labels all fit; a shadow is evaluated beside what
        rules and decides nothing. A release whose guard finds it too bad is taken back by itself. A canary or shadow in
        force ends for one of another bundle where `replace` says so, and is 409 `canary-running` otherwise.
        """
        terms = options.terms()
        bundle = _read_bundle(await _body(request), request.headers.get("content-type", ""))
        done = await publisher.publish(bundle, terms, actor, replace=options.replace)
        response.status_code = 201 if done.created else 200
        view = release_view(done.release, state)
        return Published(
            **view.model_dump(),
            created=done.created,
            problems=[shown(problem) for problem in done.problems],
            replaced=release_view(done.replaced, state) if done.replaced else None,
            warnings=ring_warnings(terms.ring, state),
        )

    @router.get("/bundles", tags=["bundles"], summary="Every bundle that was released")
    async def get_bundles(limit: _PAGE = 100) -> list[BundleView]:
        return bundle_views(state)[:limit]

    @router.get(
        "/bundles/{digest}",
        tags=["bundles"],
        summary="One bundle with its files",
        responses=not_found("No such bundle"),
    )
    async def get_bundle(digest: str) -> BundleContent:
        bundle = await publisher.bundle(digest)
        return bundle_content(bundle, next(view for view in bundle_views(state) if view.digest == digest))


def _add_releases(router: APIRouter, state: ControlPlane, publisher: Publisher) -> None:
    @router.post(
        "/promote",
        status_code=201,
        tags=["releases"],
        summary="Let the canary, or what rules another ring, rule",
        responses=not_found("Nothing to promote"),
    )
    async def post_promote(actor: Actor, wanted: Promote) -> Made:
        """The canary ends with it."""
        terms = Terms(wanted.ring, guard=wanted.guard.guard() if wanted.guard else None)
        made = await publisher.promote(terms, wanted.source, actor, wanted.release)
        return Made(**release_view(made, state).model_dump(), warnings=ring_warnings(wanted.ring, state))

    @router.post(
        "/rollback",
        status_code=201,
        tags=["releases"],
        summary="Release an earlier bundle again, or end a canary or shadow",
        responses=not_found("No such release"),
    )
    async def post_rollback(actor: Actor, wanted: RollBack) -> ReleaseView:
        if wanted.role is not None and wanted.to is None:
            return release_view(await publisher.withdraw(wanted.ring, wanted.role, actor), state)
        if wanted.to is None or wanted.role is not None:
            raise ApiFault(422, "request-malformed", "say either `to`, the release to return to, or `role`, what ends")
        return release_view(await publisher.roll_back(wanted.ring, wanted.to, actor), state)

    @router.get("/releases", tags=["releases"], summary="Releases of every role, newest first")
    async def get_releases(ring: str = "", limit: _PAGE = 100) -> list[ReleaseView]:
        return [release_view(release, state) for release in state.listed(ring)[:limit]]


def _add_reports(router: APIRouter, state: ControlPlane, clock: Callable[[], int]) -> None:
    @router.get("/edges", tags=["edges"], summary="Which edge runs which bundle since when")
    async def get_edges() -> list[EdgeView]:
        now_us = clock()
        return [edge_view(edge, state, now_us) for _, edge in sorted(state.edges.items())]

    @router.get("/status", tags=["releases"], summary="By ring: what rules, canary and shadow, counts, guards, edges")
    async def get_status(ring: str = "") -> StatusView:
        if ring:
            check_ring(ring)
        return status_view(state, ring, clock())


def _add_quarantines(
    router: APIRouter, state: ControlPlane, warden: Warden, eraser: Eraser, clock: Callable[[], int]
) -> None:
    @router.get("/quarantines", tags=["quarantines"], summary="What is quarantined now, oldest first")
    async def get_quarantines() -> list[QuarantineView]:
        return [quarantine_view(event) for event in state.quarantines.current(clock())]

    @router.post("/quarantines", status_code=201, tags=["quarantines"], summary="Have the edges refuse what matches")
    async def post_quarantine(actor: Actor, wanted: Impose) -> Imposed:
        if wanted.scope == "tool" and "/" not in wanted.value:
            raise ApiFault(422, "request-malformed", "a tool is named 'server/tool', with the server's own name of it")
        given = eraser.resolve(wanted.value) if wanted.scope == "subject" else wanted.value
        value = state.stopped_as(wanted.scope, given)
        event = await warden.impose(wanted.scope, value, wanted.reason, wanted.ttl_s, actor)
        return Imposed(**quarantine_view(event).model_dump(), known=state.knows(wanted.scope, value))

    @router.delete(
        "/quarantines/{quarantine_id}",
        status_code=204,
        tags=["quarantines"],
        summary="End a quarantine",
        responses=not_found("No such quarantine in force"),
    )
    async def delete_quarantine(
        actor: Actor,
        quarantine_id: str,
        reason: Annotated[OneLine, Query(max_length=500)] = "",
    ) -> None:
        await warden.lift(quarantine_id, reason, actor)


def _add_erasures(router: APIRouter, state: ControlPlane, eraser: Eraser) -> None:
    @router.get("/erasures", tags=["erasures"], summary="Subjects that were erased, newest first")
    async def get_erasures(limit: _PAGE = 100) -> list[ErasureView]:
        return [erasure_view(event) for event in list(state.erasures.values())[: -limit - 1 : -1]]

    @router.post("/erasures", status_code=201, tags=["erasures"], summary="Destroy every data key of a subject")
    async def post_erasure(actor: Actor, wanted: Erase, response: Response) -> ErasureView:
        """For good: what these keys sealed can never be read again. 200 for a dry run. Asking again is safe."""
        if not (wanted.dry_run or wanted.reason.strip()):
            raise ApiFault(422, "request-malformed", "reason: say why; it is recorded for good, so name nobody in it")
        done = await eraser.erase(eraser.resolve(wanted.subject), wanted.reason, actor, dry_run=wanted.dry_run)
        if done.event is not None:
            return erasure_view(done.event)
        response.status_code = 200
        return ErasureView(
            erasure_id="",
            subject_id=done.subject_id,
            reason=wanted.reason,
            actor=actor,
            erased_us=0,
            keys=len(done.kids),
        )


async def _body(request: Request) -> bytes:
    """The request's body, bounded while it arrives."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BUNDLE_BYTES_MAX:
            raise ApiFault(413, "bundle-too-large", f"a bundle has at most {BUNDLE_BYTES_MAX} bytes")
    return bytes(body)


def _read_bundle(body: bytes, content_type: str) -> Bundle:
    if content_type.partition(";")[0].strip().lower() == CANONICAL:
        return Bundle.from_bytes(body)
    try:
        files = msgspec.json.decode(body, type=_Files).files
        return bundle_of({path: text.encode() for path, text in files.items()})
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BundleFault(f'the body is not {{"files": {{path: text}}}}: {error}') from error
