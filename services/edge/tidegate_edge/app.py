"""What the edge serves beside the MCP path: the protected-resource documents (RFC 9728). FastAPI; not the hot path."""

from fastapi import APIRouter, HTTPException

from tidegate.settings import Settings


def well_known_routes(settings: Settings, issuers: tuple[str, ...]) -> APIRouter:
    """`/.well-known/oauth-protected-resource` for /mcp, each /mcp/{server} and each /mcp/sets/{name}; at
    the root, that of /mcp.
    """
    router = APIRouter(tags=["discovery"])

    def document(path: str) -> dict[str, object]:
        return {
            "resource": f"{settings.url}{path}",
            "authorization_servers": list(issuers),
            "bearer_methods_supported": ["header"],
            "resource_name": "Tidegate",
        }

    @router.get("/.well-known/oauth-protected-resource", summary="Protected resource metadata of /mcp")
    @router.get("/.well-known/oauth-protected-resource/mcp", include_in_schema=False)
    async def whole() -> dict[str, object]:
        return document("/mcp")

    @router.get(
        "/.well-known/oauth-protected-resource/mcp/{server}", summary="Protected resource metadata of one server"
    )
    async def one(server: str) -> dict[str, object]:
        if server not in settings.servers:
            raise HTTPException(404, f"no server '{server}' is configured")
        return document(f"/mcp/{server}")

    @router.get(
        "/.well-known/oauth-protected-resource/mcp/sets/{name}", summary="Protected resource metadata of one set"
    )
    async def one_set(name: str) -> dict[str, object]:
        if name not in settings.sets:
            raise HTTPException(404, f"no set '{name}' is configured")
        return document(f"/mcp/sets/{name}")

    return router
