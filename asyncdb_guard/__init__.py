"""One Postgres connection per environment, a bounded wait for it, and a circuit breaker in front of it."""

from asyncdb_guard.breaker import CircuitState
from asyncdb_guard.connect.credentials import Credentials
from asyncdb_guard.connect.lent_connection import LentConnection as Connection
from asyncdb_guard.errors import (
    AcquireTimeoutError,
    CacheUnavailableError,
    CircuitOpenError,
    ConfigurationError,
    ConnectFailedError,
    ConnectTimeoutError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    GuardError,
    PoolClosedError,
    PoolInUseError,
    StatementTimeoutError,
    TriggerEventError,
    TriggerFailedError,
)
from asyncdb_guard.events import Event, EventName, Listener, log_events
from asyncdb_guard.pool import GuardedPool, Notification, NotificationsMissed, PoolStats
from asyncdb_guard.settings import ConnectTarget, DatabaseSettings

__version__ = "0.2.0"

__all__ = [
    "AcquireTimeoutError",
    "CacheUnavailableError",
    "CircuitOpenError",
    "CircuitState",
    "ConfigurationError",
    "ConnectFailedError",
    "ConnectTarget",
    "ConnectTimeoutError",
    "Connection",
    "Credentials",
    "DatabaseSettings",
    "DatabaseUnavailableError",
    "DeadlineExceededError",
    "Event",
    "EventName",
    "GuardError",
    "GuardedPool",
    "Listener",
    "Notification",
    "NotificationsMissed",
    "PoolClosedError",
    "PoolInUseError",
    "PoolStats",
    "StatementTimeoutError",
    "TriggerEventError",
    "TriggerFailedError",
    "__version__",
    "log_events",
]
