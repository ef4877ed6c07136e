"""The claims cache: its key, the one in memory, and the guard that keeps any other from blocking a sign-in."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.cognito.event import TokenRequest
from asyncdb_guard.events import logger

T = TypeVar("T")


class CacheKey(NamedTuple):
    """Where one answer is kept. Both parts are SHA-256, in hexadecimal: no sub and no e-mail can be read from them."""

    user: str
    """The same for all entries of one user."""
    entry: str
    """Differs with everything that a callback can see, or that its answer is built from."""


class ClaimsCache(Protocol):
    """What keeps claims. Yours may raise and be slow: each call gets 0.1 s, and a failure counts as a miss."""

    async def get(self, key: CacheKey) -> str | None:
        """Return what was put there, or None."""

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        """Keep a JSON text for at most `ttl` seconds."""

    async def forget(self, user: str) -> None:
        """Drop everything whose key has this `user`."""


def user_key(sub: str) -> str:
    """The part of a key that stands for a user."""
    return _digest("user", sub)


def cache_key(request: TokenRequest, source: str) -> CacheKey:
    """The key for what `source`, the name of a callback or a statement, answers to this request."""
    user = request.user
    seen = (
        source, user.version, user.user_pool_id, user.client_id, user.region, user.trigger_source, user.sub,
        user.username, user.scopes, sorted(user.attributes.items()), sorted(user.client_metadata.items()),
        request.group_configuration,
    )  # fmt: skip
    return CacheKey(user_key(user.sub), _digest("entry", json.dumps(seen, sort_keys=True)))


def stale_key(request: TokenRequest, source: str) -> CacheKey:
    """Where the last answer to a user is kept for longer, for `on_unavailable="stale"` alone.

    Why Cognito asks, with which attributes and metadata, is not in it: a refresh shall find what the sign-in got.
    """
    user = request.user
    rights = (user.version, user.user_pool_id, user.client_id, user.sub, user.scopes, request.group_configuration)
    return CacheKey(user_key(user.sub), _digest("stale", json.dumps((source, *rights), sort_keys=True)))


def _digest(kind: str, text: str) -> str:
    return hashlib.sha256(f"asyncdb_guard {kind} {text}".encode("utf-8", "surrogatepass")).hexdigest()


class MemoryCache:
    """Claims of the users who came last, in this process; lives as long as its `CognitoTriggers`.

    `max_entries`: how many are kept; the one that was not used for longest goes first.
    """

    def __init__(self, max_entries: int = 1024, *, now: Callable[[], Instant] = clock.now) -> None:
        self._max_entries = max_entries
        self._now = now
        self._entries: OrderedDict[CacheKey, tuple[str, Instant, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: CacheKey) -> str | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, since, ttl = entry
        if elapsed(since, self._now()) >= ttl:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        self._entries[key] = (value, self._now(), ttl)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    async def forget(self, user: str) -> None:
        for key in [key for key in self._entries if key.user == user]:
            del self._entries[key]


class FailFastCache:
    """Stands before a cache that may be slow or dead, and lives as long as it.

    A call that fails, or takes longer than `BOUND`, counts as a miss. Then the cache is left alone for a while, which
    doubles with each failure in a row, so that not every sign-in pays for a dead one.
    """

    BOUND = 0.1
    """Seconds that a sign-in waits for the cache, at most."""
    FIRST_REST, LONGEST_REST = 1.0, 30.0
    """Seconds that it is left alone after a failure."""

    def __init__(self, cache: ClaimsCache, *, now: Callable[[], Instant] = clock.now) -> None:
        self._cache = cache
        self._now = now
        self._rest = 0.0
        self._failed_at: Instant = (0.0, 0.0)

    async def get(self, key: CacheKey) -> str | None:
        return await self._ask(lambda: self._cache.get(key))

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        await self._ask(lambda: self._cache.put(key, value, ttl))

    async def forget(self, user: str) -> None:
        await self._ask(lambda: self._cache.forget(user), even_at_rest=True)

    async def _ask(self, call: Callable[[], Awaitable[T]], *, even_at_rest: bool = False) -> T | None:
        if self._rest and not even_at_rest and elapsed(self._failed_at, self._now()) < self._rest:
            return None
        failed_before = self._failed_at
        try:
            async with asyncio.timeout(self.BOUND):
                answer = await call()
        except Exception as error:
            if self._failed_at != failed_before:  # those who ask at the same time see one and the same failure
                return None
            self._rest = min(self._rest * 2 or self.FIRST_REST, self.LONGEST_REST)
            self._failed_at = self._now()
            # The type alone: a client's text may carry the cache's address.
            logger.warning("The claims cache failed with %s; unused for %g s.", type(error).__name__, self._rest)
            return None
        self._rest = 0.0
        return answer
