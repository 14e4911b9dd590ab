"""How a service is served: health, readiness and metrics on every one, and a uvicorn server that drains on SIGTERM."""

import logging
from collections.abc import Callable, Iterable, Mapping
from types import FrameType

import uvicorn
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tidegate import __version__
from tidegate.limits import Limits
from tidegate.settings import host_port

Awaiting = Callable[[], Iterable[str]]
"""What a part still waits for, by name; nothing when it is ready."""

_log = logging.getLogger(__name__)


def health_routes(
    parts: Mapping[str, Awaiting], registry: CollectorRegistry, degraded: Mapping[str, Awaiting] | None = None
) -> APIRouter:
    """GET /healthz (the process lives), /readyz (503 and names while something is awaited), /metrics."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @router.get("/readyz", summary="Whether it can serve, and what it still awaits")
    async def readyz(response: Response) -> dict[str, object]:
        awaiting = {name: sorted(waits()) for name, waits in parts.items()}
        ready = not any(awaiting.values())
        response.status_code = 200 if ready else 503
        lacking = {name: sorted(lacks()) for name, lacks in (degraded or {}).items()}
        return {"ready": ready, "awaiting": _not_empty(awaiting), "degraded": _not_empty(lacking)}

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


class DrainingServer(uvicorn.Server):
    """uvicorn raises a captured signal again after serving, which would end the process before its log is closed."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def _not_empty(named: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: items for name, items in named.items() if items}


def open_server(app: object, listen: str, limits: Limits, *, http: type | None = None) -> uvicorn.Server:
    """A uvicorn server for `app`; `await server.serve()` returns after SIGTERM or SIGINT once connections are drained.

    `http` is the protocol class (the edge's own); None for uvicorn's httptools.
    """
    host, port = host_port(listen)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=host,
        port=port,
        http=http or "httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=int(limits.keep_alive_s),
        timeout_graceful_shutdown=max(1, int(limits.drain_timeout_s)),
        backlog=2048,
    )
    return DrainingServer(config)
