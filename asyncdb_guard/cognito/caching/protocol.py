"""The interface of a claims cache."""

from __future__ import annotations

from typing import Protocol

from asyncdb_guard.cognito.caching.key import CacheKey


class ClaimsCache(Protocol):
    """A cache for claims. Yours may be slow or raise: a call that fails, or takes longer than 0.1 s, is a miss."""

    async def get(self, key: CacheKey) -> str | None:
        """Return the value stored under `key`, or None."""

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        """Store `value`, a JSON text, for at most `ttl` seconds."""

    async def forget(self, user: str) -> None:
        """Delete every entry whose `key.user` equals `user`."""
