"""The guarded pool."""

from asyncdb_guard.pool.feed import Notification, NotificationsMissed
from asyncdb_guard.pool.guarded_pool import GuardedPool
from asyncdb_guard.pool.stats import PoolStats

__all__ = ["GuardedPool", "Notification", "NotificationsMissed", "PoolStats"]
