"""A client of a Redis or Valkey server, or of a cluster, for the claims cache and the fleet store."""

from asyncdb_guard.connect.redis.client import RedisClient, RedisUnavailableError
from asyncdb_guard.connect.redis.endpoint import RedisEndpoint
from asyncdb_guard.connect.redis.opening import MAX_CONNECTIONS, require_redis

__all__ = ["MAX_CONNECTIONS", "RedisClient", "RedisEndpoint", "RedisUnavailableError", "require_redis"]
