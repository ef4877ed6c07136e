"""Opens a Redis client for a setting that holds a Redis URL. Needs the extra `redis`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings.problems import label

if TYPE_CHECKING:
    from redis import Redis

_CONNECT_TIMEOUT = 1.0
"""Seconds for the TCP and TLS handshakes."""
_SOCKET_TIMEOUT = 0.5
"""Seconds for one answer."""
MAX_CONNECTIONS = 4


def require_redis(setting: str) -> None:
    """Raise ConfigurationError if the extra is missing. Imports nothing, so it costs a cold start little."""
    if importlib.util.find_spec("redis") is None:
        raise ConfigurationError(
            f"{label(setting)} needs the extra `redis`. Install it: pip install 'asyncdb-guard[redis]'."
        )


def create_client(url: str, setting: str) -> Redis:
    """Return a blocking client that neither connects yet nor retries. Raises ConfigurationError."""
    require_redis(setting)
    url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url  # the client knows no other name
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {"ssl_check_hostname": True} if url.startswith("rediss:") else {}
    try:
        return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType] -- its **kwargs have no types
            url,
            decode_responses=True,
            protocol=2,
            max_connections=MAX_CONNECTIONS,
            socket_connect_timeout=_CONNECT_TIMEOUT,
            socket_timeout=_SOCKET_TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # what it is asked for costs less than a retry
            **options,
        )
    except ValueError:
        problem = f"{label(setting)} must be a redis:// or rediss:// URL that redis-py accepts."
    raise ConfigurationError(problem)
