"""What `GuardedPool.stats()` returns."""

import asyncio
from typing import TypedDict, cast

from asyncdb_guard.breaker import CircuitState
from asyncdb_guard.errors import AcquireTimeoutError, CircuitOpenError


class Counts(TypedDict):
    """Totals since the pool was created, over all its event loops.

    `requests` is the sum of `acquired`, `acquire_timeouts`, `rejections`, `failures`, `cancellations` and `waiting`.
    """

    requests: int
    acquired: int
    acquire_timeouts: int
    """No connection came in time: all were lent, or a connect hung."""
    rejections: int
    """Refused by the circuit breaker, at once or in the queue."""
    failures: int
    """Ended with any other error: a connect was refused, a setting is wrong, the pool was closed."""
    cancellations: int
    connects: int
    """Connections opened."""
    connect_ms: float
    """Total milliseconds that opening them took."""
    connect_failures: int
    replaced: int
    """Connections that were found unusable when they were next needed, and were replaced."""
    closed: int
    """Connections that ended for any other reason."""
    wait_ms: float
    """Total milliseconds that callers waited in the queue for the connections they got."""
    held_ms: float
    """Total milliseconds for which borrowers held them."""


class Totals(Counts):
    """The same, with those of the circuit breaker."""

    circuit_openings: int
    """How often the circuit opened, failed trials included."""


class PoolStats(Totals):
    """A snapshot of a pool."""

    pool_max: int
    circuit: CircuitState
    idle: int
    lent: int
    """Connections that a borrower has, or that a worker checks, resets or closes."""
    waiting: int


class Counters:
    """The running totals behind `Counts`."""

    __slots__ = tuple(Counts.__annotations__)

    requests: int
    acquired: int
    acquire_timeouts: int
    rejections: int
    failures: int
    cancellations: int
    connects: int
    connect_ms: float
    connect_failures: int
    replaced: int
    closed: int
    wait_ms: float
    held_ms: float

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def count_failed_request(self, error: BaseException) -> None:
        """Count a request that ended with `error`."""
        if isinstance(error, CircuitOpenError):
            self.rejections += 1
        elif isinstance(error, AcquireTimeoutError):
            self.acquire_timeouts += 1
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self.cancellations += 1
        else:
            self.failures += 1

    def snapshot(self) -> Counts:
        """Return the totals so far."""
        return cast("Counts", {name: getattr(self, name) for name in self.__slots__})
