"""What `GuardedPool.stats()` tells."""

from __future__ import annotations

from typing import Any, TypedDict


class PoolStats(TypedDict):
    """A snapshot. `requests` is always the sum of `acquired`, `acquire_timeouts`, `rejections`, `failures`,
    `cancellations` and `waiting`; `connects` that of `closed`, `replaced`, `idle`, `lent` and those in between.
    """

    pool_max: int
    circuit: str
    """`closed`, `open` or `half_open`."""
    idle: int
    lent: int
    waiting: int
    requests: int
    acquired: int
    acquire_timeouts: int
    rejections: int
    """Refused by the circuit breaker, at once or while queueing."""
    failures: int
    """Ended with any other error: a connect failed, a setting is wrong, the pool was closed."""
    cancellations: int
    connects: int
    connect_failures: int
    replaced: int
    closed: int
    wait_ms: float
    """Time that callers have spent in the queue, all together."""


class Counters:
    """Counts for the life of a pool, over all its event loops."""

    __slots__ = (
        "acquire_timeouts",
        "acquired",
        "cancellations",
        "closed",
        "connect_failures",
        "connects",
        "failures",
        "rejections",
        "replaced",
        "requests",
        "wait_ms",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.acquired = 0
        self.acquire_timeouts = 0
        self.rejections = 0
        self.failures = 0
        self.cancellations = 0
        self.connects = 0
        self.connect_failures = 0
        self.replaced = 0
        self.closed = 0
        self.wait_ms = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}
