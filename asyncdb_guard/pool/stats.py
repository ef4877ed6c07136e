"""What `GuardedPool.stats()` tells."""

from __future__ import annotations

import asyncio
from typing import TypedDict, cast

from asyncdb_guard.errors import AcquireTimeoutError, CircuitOpenError


class Counts(TypedDict):
    """What has happened in the life of a pool, over all its event loops.

    `requests` is the sum of `acquired`, `acquire_timeouts`, `rejections`, `failures`, `cancellations` and of the
    callers that wait just now.
    """

    requests: int
    acquired: int
    acquire_timeouts: int
    """No connection came in time, be it that all were lent or that a connect hung."""
    rejections: int
    """Refused by the circuit breaker, at once or while queueing."""
    failures: int
    """Ended with any other error: a connect was refused, a setting is wrong, the pool was closed."""
    cancellations: int
    connects: int
    """Sessions opened."""
    connect_failures: int
    replaced: int
    """Sessions that were found unusable at a borrow, and had another opened in their place."""
    closed: int
    """Sessions that ended otherwise."""
    wait_ms: float
    """Time that callers have spent in the queue before they got a connection, all together."""


class PoolStats(Counts):
    """A snapshot of a pool."""

    pool_max: int
    circuit: str
    """`closed`, `open` or `half_open`."""
    idle: int
    lent: int
    """Sessions that a borrower has, or that are being made fit for the next one."""
    waiting: int


class Counters:
    """The same counts, as they go up."""

    __slots__ = tuple(Counts.__annotations__)

    requests: int
    acquired: int
    acquire_timeouts: int
    rejections: int
    failures: int
    cancellations: int
    connects: int
    connect_failures: int
    replaced: int
    closed: int
    wait_ms: float

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
        """The counts so far."""
        return cast("Counts", {name: getattr(self, name) for name in self.__slots__})
