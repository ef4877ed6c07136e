"""A claims cache in Redis or Valkey, shared by a fleet. Needs the extra `redis`."""

from asyncdb_guard.cognito.caching.redis.cache import RedisCache, redis_endpoint

__all__ = ["RedisCache", "redis_endpoint"]
