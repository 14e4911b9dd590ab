"""What the service answers over HTTP, as one router: whoever serves it adds health and the OpenAPI pages."""

from fastapi import APIRouter

from tidegate.local_issuer import LocalIssuer
from tidegate_policy.service import PolicyService


def policy_routes(service: PolicyService, issuer: LocalIssuer | None) -> APIRouter:
    """The management API under /api/v1 and, where there is a local issuer, its public keys (RFC 7517)."""
    router = APIRouter()
    router.include_router(service.router, prefix="/api/v1")
    if issuer is not None:

        @router.get("/.well-known/jwks.json", summary="Public keys of the local token issuer", tags=["local issuer"])
        async def jwks() -> dict[str, object]:
            return issuer.jwks()

    return router
