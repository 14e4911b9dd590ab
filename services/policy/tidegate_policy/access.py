"""Who may manage: a bearer token for this API, of this tenant, from a member of an admin group.

Deciding approvals is open to others, too (`Access.member`): there each route looks at who asks.
"""

from typing import Protocol

from fastapi import Request

from tidegate.identity import Principal, Refused
from tidegate.settings import Settings
from tidegate_policy.problems import ApiFault


class Verifier(Protocol):
    """Verifies tokens whose audience is the management API (`TokenVerifier` does)."""

    async def verify(self, token: str) -> Principal | Refused: ...


def management_audience(settings: Settings) -> str:
    """What a token's `aud` must name."""
    return f"{settings.url}/api/v1"


class Access:
    """A FastAPI dependency: puts the administrator who asks into `request.state.principal`, or raises a fault."""

    def __init__(self, settings: Settings, verifier: Verifier) -> None:
        self._tenant = settings.tenant
        self._admin_groups = frozenset(settings.management.admin_groups)
        self._audience = management_audience(settings)
        self._verifier = verifier

    async def __call__(self, request: Request) -> None:
        found = await self._verified(request)
        if not self._is_admin(found):
            groups = ", ".join(sorted(self._admin_groups))
            raise ApiFault(403, "not-an-administrator", f"managing this tenant takes a member of one of: {groups}")
        request.state.principal = found

    async def member(self, request: Request) -> None:
        """The same for anybody of the tenant; `request.state.is_admin` says whether they are an administrator."""
        found = await self._verified(request)
        if found.tenant != self._tenant:
            raise ApiFault(403, "tenant-foreign", f"your token is not one of the tenant '{self._tenant}'")
        request.state.principal, request.state.is_admin = found, self._is_admin(found)

    def _is_admin(self, found: Principal) -> bool:
        return found.tenant == self._tenant and not self._admin_groups.isdisjoint(found.groups)

    async def _verified(self, request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise self._challenge(f"send a bearer token whose audience is {self._audience}", "")
        found = await self._verifier.verify(token.strip())
        if isinstance(found, Refused):
            if found.status == 401:
                raise self._challenge(found.message, found.error, found.reason)
            raise ApiFault(found.status, found.reason, found.message)
        return found

    def _challenge(self, sentence: str, error: str, code: str = "token-missing") -> ApiFault:
        value = f'Bearer error="{error}"' if error else "Bearer"
        return ApiFault(401, code, sentence, {"WWW-Authenticate": value})
