"""The connection pool that the parts of `redis.py` share, and how their keys are named.

Its rules: an exchange with Redis stands within `Link.asked()`, which bounds the wait and tells every failure as
SessionsUnavailable; a command may be sent twice where a connection had died unseen, so every command bears that.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

import msgspec
import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tidegate.errors import ConfigFault
from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.hearing import cancellations, is_cancelled
from tidegate.sessions.port import SessionsUnavailable

_CONNECTIONS_MAX: Final = 32
_CONNECT_TIMEOUT_S: Final = 1.0
_REPLY_TIMEOUT_S: Final = 1.0
_DEADLINE_S: Final = 2.0  # of one method, connecting and one retry included
_SESSION: Final = "|1|session|"
_RESET: Final = (RuntimeError,)  # what uvloop says, and redis passes on, where a connection was reset while it idled

T = TypeVar("T")
Argument = bytes | str | int | float
"""Of a script. `list` is invariant: a list of them must be declared so."""


class Link:
    """`url` is redis:// or rediss:// (TLS; `?ssl_ca_certs=FILE`). Raises ConfigFault when it is malformed."""

    def __init__(self, url: str) -> None:
        try:
            options: dict[str, Any] = dict(parse_url(url))
        except ValueError as error:
            raise ConfigFault(f"$.sessions: {error}; expected redis://[user:password@]host:port/db") from None
        self._where = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS_MAX,
            timeout=_DEADLINE_S,  # for a free connection: a burst waits its turn
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_REPLY_TIMEOUT_S,
            protocol=2,
            # A pooled connection may have died unseen: once more on a new one.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError, *_RESET)),  # type: ignore[arg-type]
        )
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis(connection_pool=pool)

    def script(self, text: str) -> AsyncScript:
        return self.redis.register_script(text)

    async def publish(self, channel: str, body: bytes) -> int:
        return int(await self.redis.publish(channel, body))

    async def close(self) -> None:
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Bounds the wait and turns what the client library raises into SessionsUnavailable."""
        before = cancellations()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                yield
        except (RedisError, OSError, TimeoutError, *_RESET) as error:
            what = type(error).__name__
            sentence = f"the session store at {self._where} did not answer ({what}); check `sessions` and the server"
            raise SessionsUnavailable(sentence) from error
        if is_cancelled(since=before):
            raise asyncio.CancelledError


def read(decoder: "msgspec.json.Decoder[T]", stored: bytes) -> T:
    try:
        return decoder.decode(stored)
    except msgspec.DecodeError as error:
        raise SessionsUnavailable(
            f"a stored session cannot be read ({error}); is Redis shared with something else?"
        ) from None


def milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


@lru_cache(maxsize=1024)
def _prefix(tenant: str) -> str:
    """Tenant, then format version. Quoted: no tenant's name can reach into another's keys."""
    return f"{quote(tenant, safe='')}|1|"


def session_key(tenant: str, session_id: str) -> str:
    return f"{_prefix(tenant)}session|{session_id}"


def session_of(key: str) -> tuple[str, str]:
    """What `session_key` was made of."""
    tenant, _, session_id = key.partition(_SESSION)
    return unquote(tenant), session_id


def subject_key(tenant: str, subject_id: str) -> str:
    return f"{_prefix(tenant)}subject|{subject_id}"


def taint_key(tenant: str, session_id: str) -> str:
    """`""`: what the keys of the tenant's sessions begin with."""
    return f"{_prefix(tenant)}taint|{session_id}"


@lru_cache(maxsize=SESSIONS_CACHED_MAX)
def entry_key(tenant: str, kind: str, *parts: str) -> str:
    """Parts of any length and content (an agent's name may be a URL) become one digest."""
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()
    return f"{_prefix(tenant)}{kind}|{digest}"


def named_key(kind: str, name: str, *more: str) -> str:
    """The key of something whose name begins with its tenant: `tenant|…`."""
    return entry_key(name.partition("|")[0], kind, name, *more)
