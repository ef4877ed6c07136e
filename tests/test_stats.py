"""What is counted of a request that failed."""

from __future__ import annotations

import asyncio

import pytest

from asyncdb_guard import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConnectFailedError,
    ConnectTimeoutError,
    PoolClosedError,
)
from asyncdb_guard.pool.stats import Counters


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (CircuitOpenError("open", retry_after=1.0), "rejections"),
        (AcquireTimeoutError("full"), "acquire_timeouts"),
        (ConnectTimeoutError("silent"), "acquire_timeouts"),
        (asyncio.CancelledError(), "cancellations"),
        (GeneratorExit(), "cancellations"),
        (ConnectFailedError("refused"), "failures"),
        (PoolClosedError(), "failures"),
        (KeyboardInterrupt(), "failures"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_failed_request_is_counted_once_by_how_it_ended(error: BaseException, count: str) -> None:
    counters = Counters()
    counters.count_failed_request(error)
    counted = counters.snapshot()
    assert {name: value for name, value in counted.items() if value} == {count: 1}
    assert set(counted) >= {"requests", "acquired", "connects", "held_ms"}
