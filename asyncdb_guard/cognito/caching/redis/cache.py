"""The entries of the claims cache in Redis, and the commands that read, write and invalidate them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.caching.protocol import Found
from asyncdb_guard.connect.redis import MAX_CONNECTIONS, RedisClient, RedisEndpoint, RedisUnavailableError
from asyncdb_guard.errors import CacheUnavailableError

if TYPE_CHECKING:
    from asyncdb_guard.settings import DatabaseSettings

T = TypeVar("T")

_PREFIX = "asyncdb_guard:claims:1"
"""The number is the version of the entries' format."""
_KEYS = "asyncdb_guard:claims:*"
"""Those of every version."""
_GENERATION_TTL = 90_000
"""Seconds that Redis keeps a user's generation: longer than the longest TTL of an entry, one day."""
_NO_GENERATION = ""
_INVALID = ""
"""The text of an entry in another format: no JSON, so that the store counts it as a miss and says so."""
_PUT = """
local generation = redis.pcall('GET', KEYS[1])
if type(generation) == 'table' then
    if not string.find(generation.err, 'WRONGTYPE') then return generation end
    generation = false
end
if (generation or '') ~= ARGV[5] then return false end
generation = generation or ARGV[1]
redis.call('SET', KEYS[1], generation, 'EX', ARGV[2])
redis.call('SET', KEYS[2], '{"generation": "' .. generation .. '", "claims": ' .. ARGV[3] .. '}', 'PX', ARGV[4])
return generation
"""
"""One round trip, and atomic against `forget`. A user's first entry starts a generation; every entry renews its TTL."""


class RedisCache:
    """A `ClaimsBackend` in Redis; lives as long as its `CognitoTriggers`, across event loops and forks.

    Each entry carries its user's generation. `forget` starts a new one, which invalidates all older entries at once,
    and those of loads that are in progress anywhere in the fleet.

    It runs redis-py's blocking client in its own threads. That client is not bound to an event loop, and a TLS
    handshake that takes longer than a sign-in may wait still completes, ready for the next call.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        """Does not connect yet. Raises ConfigurationError if the extra is missing or a file is unusable."""
        self._settings = settings
        self._start()

    def _start(self) -> None:
        self._client = RedisClient(redis_endpoint(self._settings))
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="asyncdb_guard-claims-cache")
        self._pid = os.getpid()

    async def look_up(self, key: CacheKey) -> Found:
        """Return the stored value, if it has not expired, been evicted or been forgotten, and the user's generation.

        Without its generation, an entry is invalid: it may have been forgotten. Raises CacheUnavailableError.
        """
        names = [_generation_name(key.user), _entry_name(key)]
        values = await self._run(lambda client: client.mget(names))
        generation, text = (value.decode(errors="replace") if value is not None else None for value in values)
        if generation is None or text is None:
            return Found(None, generation or _NO_GENERATION)
        return Found(_claims_of(text, generation), generation)

    async def store(self, key: CacheKey, text: str, ttl: float, generation: str | None) -> str | None:
        """Store `text` for `ttl` seconds, unless the user was forgotten since; Redis itself expires it.

        Raises CacheUnavailableError.
        """
        if generation is None:
            return None
        names = (_generation_name(key.user), _entry_name(key))
        arguments = (uuid4().hex, str(_GENERATION_TTL), text, str(max(round(ttl * 1000), 1)), generation)
        stored_under = await self._run(lambda client: client.eval(_PUT, len(names), *names, *arguments))
        return stored_under.decode() if stored_under is not None else None

    async def forget(self, user: str) -> None:
        """Invalidate every entry of the user by starting a new generation. Raises CacheUnavailableError."""
        await self._run(lambda client: client.set(_generation_name(user), uuid4().hex, ex=_GENERATION_TTL))

    forget_soon = forget

    async def _run(self, command: Callable[[Any], T]) -> T:
        if self._pid != os.getpid():  # a forked child has none of its parent's threads, which may have held a lock
            self._start()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._client.run, command)
        except RedisUnavailableError as error:
            raise CacheUnavailableError(str(error), answered=error.answered) from error


def redis_endpoint(settings: DatabaseSettings) -> RedisEndpoint:
    """Where these settings keep the claims cache."""
    assert settings.claims_cache_url is not None
    return RedisEndpoint(
        settings.claims_cache_url, "claims_cache", "claims cache", f"EVAL, GET, MGET and SET on `{_KEYS}`",
        settings.claims_cache_ssl_root_cert, settings.claims_cache_ssl_cert, settings.claims_cache_ssl_key,
    )  # fmt: skip


def _claims_of(text: str, generation: str) -> str | None:
    """The claims of an entry as JSON; None if the entry is of another generation."""
    try:
        entry: object = json.loads(text)
    except (ValueError, RecursionError):
        return _INVALID
    if not isinstance(entry, dict):
        return _INVALID
    fields = cast("dict[str, object]", entry)
    if "claims" not in fields or "generation" not in fields:
        return _INVALID
    return json.dumps(fields["claims"]) if fields["generation"] == generation else None


def _generation_name(user: str) -> str:
    # The braces put all keys of a user into one hash slot of a cluster, which MGET requires.
    return f"{_PREFIX}:{{{user}}}"


def _entry_name(key: CacheKey) -> str:
    return f"{_generation_name(key.user)}:{key.entry}"
