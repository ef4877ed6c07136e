"""The interfaces of a claims cache: the one that a user implements, and the one that the store uses."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from asyncdb_guard.cognito.caching.key import CacheKey


class ClaimsCache(Protocol):
    """A cache for claims. Yours may be slow or raise.

    A `get` or `put` that raises or takes longer than 0.1 s is a miss. A `forget` that raises or takes longer than
    1.5 s is a CacheUnavailableError for whoever asked for it.
    """

    async def get(self, key: CacheKey) -> str | None:
        """Return the value stored under `key`, or None."""

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        """Store `value`, a JSON text, for at most `ttl` seconds."""

    async def forget(self, user: str) -> None:
        """Delete every entry whose `key.user` equals `user`."""


class Found(NamedTuple):
    """What a cache has under a key."""

    text: str | None
    """The stored value, or None."""
    generation: str | None
    """The state of the user's entries, which changes when the user is forgotten; None if it is unknown."""


class ClaimsBackend(Protocol):
    """A cache as the store uses it. It refuses claims that were loaded before the user was forgotten."""

    async def look_up(self, key: CacheKey) -> Found:
        """Return the value stored under `key`, if any, and the user's generation."""
        ...

    async def store(self, key: CacheKey, text: str, ttl: float, generation: str | None) -> str | None:
        """Store `text` for at most `ttl` seconds if the user's generation is still the given one.

        Return the user's generation now, or None if nothing was stored.
        """
        ...

    async def forget(self, user: str) -> None:
        """Delete every entry of the user. Raises CacheUnavailableError if that may not have happened."""

    async def forget_soon(self, user: str) -> None:
        """Delete every entry of the user, now or as soon as the cache is available, and serve none until then."""
