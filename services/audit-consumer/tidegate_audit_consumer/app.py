"""The audit consumer's HTTP face when it has a process of its own: health, readiness, metrics. In `up` the host has
its own.
"""

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tidegate_audit_consumer.consumer import AuditConsumer


def create_app(consumer: AuditConsumer, registry: CollectorRegistry) -> FastAPI:
    """GET /healthz, /readyz (503 and what is awaited), /metrics."""
    app = FastAPI(title="Tidegate audit consumer", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        awaited = sorted(consumer.awaited)
        return JSONResponse({"ready": not awaited, "awaiting": awaited}, status_code=503 if awaited else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app
