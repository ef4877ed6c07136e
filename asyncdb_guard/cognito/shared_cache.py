"""Claims that a fleet shares through Redis (extra `redis`)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from asyncdb_guard.cognito.cache import CacheKey
from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings.problems import label

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

_SETTING = label("claims_cache_url")
_PREFIX = "asyncdb_guard:claims:1"
"""The number is that of the entries' format."""
_CONNECT_TIMEOUT = 1.0
"""Seconds."""
_SOCKET_TIMEOUT = 0.5
"""Seconds."""
_CONNECTIONS = 4
_LONGEST = 90_000
"""Seconds that a generation is remembered: longer than any entry can live, which is a day."""
_PUT = """
local generation = redis.call('GET', KEYS[1]) or ARGV[1]
redis.call('SET', KEYS[1], generation, 'EX', ARGV[2])
redis.call('SET', KEYS[2], '{"generation": "' .. generation .. '", "claims": ' .. ARGV[3] .. '}', 'PX', ARGV[4])
"""
"""One round trip, and no `forget` between its steps. The user's first entry begins a generation; each one renews it."""


class SharedCache:
    """A `ClaimsCache` in Redis; lives as long as its `CognitoTriggers`, over event loops and forks.

    The client is the blocking one, in threads of its own: bound to no event loop, it outlives each of them, and what
    takes longer than a sign-in may wait, such as a TLS handshake on a small Lambda, is still there for the next one.
    """

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. Raises ConfigurationError if the URL is none, or if the extra is missing."""
        self._client = _client(url)
        self._threads: ThreadPoolExecutor | None = None
        self._pid = 0

    async def get(self, key: CacheKey) -> str | None:
        """Return what was put there, unless Redis has let it go or the user was forgotten since.

        Nor where Redis has let go of the generation: nobody can tell then whether the user was forgotten.
        """
        names = [_generation(key.user), _name(key)]
        found: Any = await self._run(lambda: self._client.mget(names))
        generation, text = found
        if generation is None or text is None:
            return None
        entry: dict[str, Any] = json.loads(text)
        return json.dumps(entry["claims"]) if entry.get("generation") == generation else None

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        """Keep `value` for `ttl` seconds. Redis itself drops it then."""
        names = (_generation(key.user), _name(key))
        words = (uuid4().hex, str(_LONGEST), value, str(max(round(ttl * 1000), 1)))
        await self._run(lambda: self._client.eval(_PUT, len(names), *names, *words))

    async def forget(self, user: str) -> None:
        """Begin a new generation of the user's entries, so that all that were put before it are void."""
        await self._run(lambda: self._client.set(_generation(user), uuid4().hex, ex=_LONGEST))

    async def _run(self, call: Callable[[], T]) -> T:
        if self._threads is None or self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="asyncdb_guard-claims-cache")
            self._pid = os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _generation(user: str) -> str:
    # The braces keep all of a user's keys on one node of a cluster, as MGET needs.
    return f"{_PREFIX}:{{{user}}}"


def _name(key: CacheKey) -> str:
    return f"{_generation(key.user)}:{key.entry}"


def _client(url: str) -> Redis:
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        fault = f"{_SETTING} needs the extra `redis`: pip install 'asyncdb-guard[redis]'."
    else:
        try:
            return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType] -- its **kwargs have no types
                url,
                decode_responses=True,
                protocol=2,
                max_connections=_CONNECTIONS,
                socket_connect_timeout=_CONNECT_TIMEOUT,
                socket_timeout=_SOCKET_TIMEOUT,
                retry=Retry(NoBackoff(), 0),  # a miss costs less
            )
        except ValueError:
            fault = f"{_SETTING} must begin with redis:// or rediss:// and be a URL that redis-py takes."
    raise ConfigurationError(fault)
