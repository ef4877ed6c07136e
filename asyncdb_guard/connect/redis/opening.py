"""Opens a Redis client for a setting that holds a Redis URL. Needs the extra `redis`."""

from __future__ import annotations

import importlib.util
from typing import Any

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings.problems import label

_CONNECT_TIMEOUT = 1.0
"""Seconds for the TCP and TLS handshakes."""
_SOCKET_TIMEOUT = 0.5
"""Seconds for one answer."""
MAX_CONNECTIONS = 4
"""Connections to one server, and calls at the same time."""


def require_redis(setting: str) -> None:
    """Raise ConfigurationError if the extra is missing. Imports nothing, so it costs a cold start little."""
    if importlib.util.find_spec("redis") is None:
        raise ConfigurationError(
            f"{label(setting)} needs the extra `redis`. Install it: pip install 'asyncdb-guard[redis]'."
        )


def create_client(url: str, setting: str, *, is_cluster: bool = False, **options: Any) -> Any:
    """Return a blocking client: of one server, not connected yet, or of a cluster, after it has asked for its nodes.

    It does not retry: what it is asked for costs less than a retry. `options` are redis-py's. Raises ConfigurationError
    if the extra is missing or redis-py does not accept the URL.
    """
    require_redis(setting)
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    if url.startswith("valkey"):  # redis-py knows no other name
        url = f"redis{url.removeprefix('valkey')}"
    options |= {
        "protocol": 2,
        "max_connections": MAX_CONNECTIONS,
        "socket_connect_timeout": _CONNECT_TIMEOUT,
        "socket_timeout": _SOCKET_TIMEOUT,
    }
    try:
        if is_cluster:
            # One slot that no node serves is no reason to refuse the users of all the others.
            return redis.RedisCluster.from_url(url, retry=Retry(NoBackoff(), 1), require_full_coverage=False, **options)
        if url.startswith("rediss:"):
            options["ssl_check_hostname"] = True
        return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType] -- its **kwargs have no types
            url, retry=Retry(NoBackoff(), 0), **options
        )
    except ValueError:
        problem = f"{label(setting)} must be a URL that redis-py accepts."
    raise ConfigurationError(problem)
