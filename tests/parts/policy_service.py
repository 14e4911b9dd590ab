"""The policy service over the local log, served by real HTTP, asked with real tokens, beside an edge's view of the log.

`async with running(settings_for(directory)) as service`; `Edge` says in the log what an edge would.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from tidegate.chain import Chain, open_event
from tidegate.events import BundleActivated, BundleObserved, BundleRejected, QuarantineImposed, Role
from tidegate.ids import now_us, uuid7
from tidegate.local_issuer import LocalIssuer, open_local_issuer
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.approvals import approval_in
from tidegate.policy.bundle import bundle_of
from tidegate.policy.control import Quarantines
from tidegate.policy.release import Activation, PolicyState
from tidegate.policy.signing import trusted_keys
from tidegate.privacy.erasure import is_erasure
from tidegate.secrets import open_secrets
from tidegate.serving import health_routes, open_server
from tidegate.settings import Settings
from tidegate_policy.wiring import Opened, open_policy

PROBLEM = "application/problem+json"


def variant(name: str, **files: str) -> dict[str, str]:
    """A small valid bundle's files."""
    return {
        "manifest.json": f'{{"v": 1, "name": "{name}"}}',
        "policies/p.cedar": '@id("a") permit (principal, action, resource);',
        **files,
    }


def digest_of(files: dict[str, str]) -> str:
    return bundle_of({path: text.encode() for path, text in files.items()}).digest


@dataclass
class Onlooker:
    """What an edge would fold: releases and quarantines, straight from the log."""

    policy: PolicyState
    quarantines: Quarantines = field(default_factory=Quarantines)
    stored: set[str] = field(default_factory=set)
    activations: list[Activation] = field(default_factory=list)

    async def follow(self, log: SqliteLog) -> None:
        subscription = await log.follow(("policy-state", "control-state"))
        while True:
            for record in await subscription.poll(100, 1.0):
                if is_erasure(record.key) or approval_in(record.key):
                    continue
                if record.topic == "policy-state":
                    outcome = self.policy.apply(record, now_us())
                    if isinstance(outcome, Activation):
                        self.activations.append(outcome)
                elif record.value is None:
                    self.stored.discard(record.key.decode().partition("|")[2])
                    self.quarantines.drop(record.key.decode().partition("|")[2])
                else:
                    event = open_event(record.value)
                    assert isinstance(event, QuarantineImposed)
                    self.stored.add(event.quarantine_id)
                    self.quarantines.apply(event)


@dataclass
class Running:
    """A served policy service, its log, and a client with an administrator's token."""

    settings: Settings
    log: SqliteLog
    opened: Opened
    issuer: LocalIssuer
    base: str
    client: aiohttp.ClientSession
    onlooker: Onlooker

    def token(self, *groups: str, audience: str = "", user: str = "root@example.com") -> str:
        audiences = [audience or f"{self.settings.url}/api/v1"]
        return self.issuer.mint(user, "cli", groups or ("tidegate-admins",), 600, audiences, int(time.time()))

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **more: Any
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token if token is not None else self.token()}", **more.pop("headers", {})}
        data = {"data": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        async with self.client.request(method, f"{self.base}{path}", headers=headers, **data, **more) as response:
            text = await response.text()
            if response.status >= 400:
                assert response.content_type == PROBLEM, text
            return response.status, msgspec.json.decode(text) if text else None


def settings_for(root: Path, **more: Any) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    return msgspec.convert({"listen": listen, "root": str(root), "tenant": "acme", **more}, Settings)


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    registry = CollectorRegistry()
    try:
        async with open_policy(settings, log, open_secrets(settings), registry) as opened:
            app = FastAPI()
            app.include_router(health_routes({"policy": opened.awaiting}, registry))
            app.include_router(opened.routes)
            server = open_server(app, settings.listen, settings.limits)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined, method-assign]
            serving = asyncio.create_task(server.serve())
            onlooker = Onlooker(PolicyState("acme", "main", trusted_keys([opened.public_key])))
            watching = asyncio.create_task(onlooker.follow(log))
            async with aiohttp.ClientSession() as client:
                base = f"http://{settings.listen}"
                await until(lambda: _ready(client, base))
                yield Running(settings, log, opened, open_local_issuer(settings), base, client, onlooker)
            watching.cancel()
            server.should_exit = True
            await serving
    finally:
        await log.close()


async def _ready(client: aiohttp.ClientSession, base: str) -> bool:
    try:
        async with client.get(f"{base}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def until(fact: Callable[[], Awaitable[bool]] | Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for a fact."""
    end = time.monotonic() + deadline_s
    while True:
        found = fact()
        if isinstance(found, bool):
            if found:
                return
        elif await found:
            return
        assert time.monotonic() < end, "the awaited fact did not come"
        await asyncio.sleep(0.01)


def write(directory: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)


class Edge:
    """What an edge says of releases, written into the log as an edge would."""

    def __init__(self, log: SqliteLog, name: str, ring: str = "main") -> None:
        self._log = log
        self._chain = Chain(f"{name}.{uuid7()}")
        self._place: dict[str, Any] = {"tenant": "acme", "region": "local", "edge": name, "ring": ring}
        self.since_us = now_us()

    async def activate(self, number: int, digest: str, role: Role = "ruling") -> None:
        """It runs the release; its counts of it begin."""
        self.since_us = now_us()
        event = BundleActivated(**self._place, id=uuid7(), time_us=now_us(), number=number, digest=digest, role=role)
        await self._log.append([self._chain.seal(event)])

    async def reject(self, number: int, digest: str, reason: str, role: Role = "ruling") -> None:
        event = BundleRejected(
            **self._place, id=uuid7(), time_us=now_us(), number=number, digest=digest, role=role, reason=reason
        )
        await self._log.append([self._chain.seal(event)])

    async def observe(
        self, number: int, digest: str, role: Role = "ruling", *, since_us: int = 0, at_us: int = 0, **counts: Any
    ) -> None:
        """It has counted so much of the release since it runs it."""
        event = BundleObserved(
            **self._place,
            id=uuid7(),
            time_us=at_us or now_us(),
            number=number,
            digest=digest,
            role=role,
            since_us=since_us or self.since_us,
            **counts,
        )
        await self._log.append([self._chain.seal(event)])
