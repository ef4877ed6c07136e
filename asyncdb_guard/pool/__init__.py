"""The guarded pool."""

from asyncdb_guard.pool.face import GuardedPool
from asyncdb_guard.pool.stats import PoolStats

__all__ = ["GuardedPool", "PoolStats"]
