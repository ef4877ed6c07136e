"""A claims cache in Redis, shared by a fleet. Needs the extra `redis`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import uuid4

from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.connect.redis_client import MAX_CONNECTIONS, create_client

T = TypeVar("T")

_PREFIX = "asyncdb_guard:claims:1"
"""The number is the version of the entries' format."""
_GENERATION_TTL = 90_000
"""Seconds that Redis keeps a user's generation: longer than the longest TTL of an entry, one day."""
_PUT = """
local generation = redis.call('GET', KEYS[1]) or ARGV[1]
redis.call('SET', KEYS[1], generation, 'EX', ARGV[2])
redis.call('SET', KEYS[2], '{"generation": "' .. generation .. '", "claims": ' .. ARGV[3] .. '}', 'PX', ARGV[4])
"""
"""One round trip, and atomic against `forget`. A user's first entry starts a generation; every entry renews its TTL."""


class RedisCache:
    """A `ClaimsCache` in Redis; lives as long as its `CognitoTriggers`, across event loops and forks.

    Each entry carries its user's generation. `forget` starts a new one, which invalidates all older entries at once.

    It runs redis-py's blocking client in its own threads. That client is not bound to an event loop, and a TLS
    handshake that takes longer than a sign-in may wait still completes, ready for the next call.
    """

    def __init__(self, url: str) -> None:
        """Does not connect yet. Raises ConfigurationError if the URL is invalid or the extra is missing."""
        self._client = create_client(url, "claims_cache_url")
        self._threads: ThreadPoolExecutor | None = None
        self._pid = 0

    async def get(self, key: CacheKey) -> str | None:
        """Return the stored value, or None if it expired, was evicted or was forgotten.

        Without its generation, an entry is invalid: it may have been forgotten.
        """
        names = [_generation_name(key.user), _entry_name(key)]
        values: Any = await self._run(lambda: self._client.mget(names))
        generation, text = values
        if generation is None or text is None:
            return None
        entry: dict[str, Any] = json.loads(text)
        return json.dumps(entry["claims"]) if entry.get("generation") == generation else None

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        """Store `value` for `ttl` seconds. Redis itself expires it."""
        names = (_generation_name(key.user), _entry_name(key))
        arguments = (uuid4().hex, str(_GENERATION_TTL), value, str(max(round(ttl * 1000), 1)))
        await self._run(lambda: self._client.eval(_PUT, len(names), *names, *arguments))

    async def forget(self, user: str) -> None:
        """Invalidate every entry of the user by starting a new generation."""
        await self._run(lambda: self._client.set(_generation_name(user), uuid4().hex, ex=_GENERATION_TTL))

    async def _run(self, call: Callable[[], T]) -> T:
        if self._threads is None or self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="asyncdb_guard-claims-cache")
            self._pid = os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _generation_name(user: str) -> str:
    # The braces put all keys of a user into one hash slot of a cluster, which MGET requires.
    return f"{_PREFIX}:{{{user}}}"


def _entry_name(key: CacheKey) -> str:
    return f"{_generation_name(key.user)}:{key.entry}"
