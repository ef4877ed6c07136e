"""The claims cache in the memory of this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.cognito.caching.key import CacheKey


class MemoryCache:
    """A `ClaimsCache` in the memory of this process; lives as long as its `CognitoTriggers`.

    `max_entries`: when there are more, the least recently used one is evicted.
    """

    def __init__(self, max_entries: int = 1024, *, now: Callable[[], Instant] = clock.now) -> None:
        self._max_entries = max_entries
        self._now = now
        self._entries: OrderedDict[CacheKey, tuple[str, Instant, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: CacheKey) -> str | None:
        """Return the value stored under `key`, or None."""
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
        """Store `value` for at most `ttl` seconds."""
        self._entries[key] = (value, self._now(), ttl)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    async def forget(self, user: str) -> None:
        """Delete every entry whose `key.user` equals `user`."""
        for key in [key for key in self._entries if key.user == user]:
            del self._entries[key]
