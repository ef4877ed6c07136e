"""Claims that are cached for the next sign-in, and for longer in case the database becomes unavailable."""

from __future__ import annotations

from typing import NamedTuple

from asyncdb_guard.cognito.caching.fail_fast import FailFastCache
from asyncdb_guard.cognito.caching.key import CacheKey, cache_key, client_key, stale_key, user_key
from asyncdb_guard.cognito.caching.memory import MemoryCache
from asyncdb_guard.cognito.caching.plain import PlainBackend
from asyncdb_guard.cognito.caching.protocol import ClaimsBackend, ClaimsCache
from asyncdb_guard.cognito.caching.single_flight import Lead, SingleFlight
from asyncdb_guard.cognito.claims import Overrides, restore
from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.cognito.event import TokenRequest
from asyncdb_guard.cognito.outcome import Outcome
from asyncdb_guard.events import logger
from asyncdb_guard.settings import DatabaseSettings

_MIN_STALE_TTL = 3600.0
"""Seconds that stale claims are kept, unless the time to live is longer."""


class LoadedClaims(NamedTuple):
    """A user's claims, and where they come from."""

    overrides: Overrides
    from_cache: bool


class ClaimsStore:
    """The cached claims and the loads in progress; lives as long as its `CognitoTriggers`."""

    def __init__(self, cache: ClaimsBackend, *, ttl: float, keep_stale: bool) -> None:
        """`ttl` in seconds; 0 turns the cache off, so that only concurrent requests share a load."""
        self.cache = cache
        self.ttl = ttl
        self.keep_stale = keep_stale
        self.loads: SingleFlight[LoadedClaims] = SingleFlight()
        self._told_of_invalid = False

    def entry(self, request: TokenRequest, callback_id: str) -> ClaimsEntry:
        """What the store holds as the answer of the callback named by `callback_id` to `request`. No I/O."""
        return ClaimsEntry(self, request, callback_id)

    async def forget(self, sub: str) -> None:
        """Delete everything cached for one user, and do not cache the user's loads in progress.

        Raises CacheUnavailableError if entries may be left.
        """
        await self._forget(user_key(sub))

    async def forget_client(self, client_id: str) -> None:
        """The same for one machine."""
        await self._forget(client_key(client_id))

    async def _forget(self, owner: str) -> None:
        self.loads.forget(owner)
        await self.cache.forget(owner)

    def report_invalid(self) -> None:
        """Log, once, that an entry could not be read."""
        if not self._told_of_invalid:
            self._told_of_invalid = True
            logger.warning(
                "An entry of the claims cache is not in the format of this library, and counts as a miss. Check who"
                " else writes to the cache. Further such entries are not reported."
            )


class ClaimsEntry:
    """One answer in the store; lives for one call of a trigger."""

    def __init__(self, store: ClaimsStore, request: TokenRequest, callback_id: str) -> None:
        self._store = store
        self.request = request
        self._callback_id = callback_id
        self._key = cache_key(request, callback_id)
        self._generation: str | None = ""
        """The user's, when the cache was last asked: claims that are older than a `forget` are not cached."""

    async def join(self, deadline: Deadline) -> Lead[LoadedClaims] | Outcome[LoadedClaims]:
        """Lead the load of this answer, or wait for the outcome of the one in progress; see `SingleFlight.join`."""
        return await self._store.loads.join(self._key, deadline)

    async def read(self) -> Overrides | None:
        """Return the cached claims, or None."""
        return await self._read(self._key) if self._store.ttl else None

    async def read_stale(self) -> Overrides | None:
        """Return the last known claims of this user, not older than stale claims may be, or None."""
        return await self._read(self._stale_key()) if self._store.keep_stale else None

    async def write(self, overrides: Overrides, lead: Lead[LoadedClaims], deadline: Deadline) -> None:
        """Cache the claims that `lead` loaded, as far as the deadline leaves time for it.

        If the user is forgotten meanwhile, nothing stays.
        """
        text = overrides.dump()
        await self._write(self._key, text, self._store.ttl, lead, deadline)
        if self._store.keep_stale:
            await self._write(self._stale_key(), text, max(self._store.ttl, _MIN_STALE_TTL), lead, deadline)

    async def drop_stale(self) -> None:
        """Delete everything cached for this user: the database answered, and the last known claims are now wrong."""
        if self._store.keep_stale:
            await self._store.cache.forget_soon(self._key.user)

    def _stale_key(self) -> CacheKey:
        return stale_key(self.request, self._callback_id)

    async def _read(self, key: CacheKey) -> Overrides | None:
        text, self._generation = await self._store.cache.look_up(key)
        if text is None:
            return None
        overrides = restore(text, self.request.subject)
        if overrides is None or overrides.empty:  # an empty answer is never cached
            self._store.report_invalid()
            return None
        return overrides

    async def _write(self, key: CacheKey, text: str, ttl: float, lead: Lead[LoadedClaims], deadline: Deadline) -> None:
        wanted = lead.still_wanted
        if not ttl or not deadline.remaining or not wanted:  # a slow cache must not delay the answer
            return
        self._generation = await self._store.cache.store(key, text, ttl, self._generation)
        if not lead.still_wanted:
            # The cache may have done the two in any order.
            await self._store.cache.forget_soon(self._key.user)


def open_store(settings: DatabaseSettings, cache: ClaimsCache | None, *, keep_stale: bool) -> ClaimsStore:
    """The store for these settings, with the cache that the user passed, if any. Raises ConfigurationError."""
    backend: ClaimsBackend = PlainBackend(MemoryCache())
    if cache is not None:
        backend = FailFastCache(PlainBackend(cache))
    elif settings.claims_cache_url is not None:
        # only where needed, for a quick cold start
        from asyncdb_guard.cognito.caching.redis import RedisCache
        from asyncdb_guard.connect.redis import MAX_CONNECTIONS

        backend = FailFastCache(RedisCache(settings), concurrency=MAX_CONNECTIONS)
    return ClaimsStore(backend, ttl=settings.claims_cache_ttl, keep_stale=keep_stale)
