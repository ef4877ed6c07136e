"""`open_circuit(pool)`: what the code does while the circuit breaker refuses everybody."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from asyncdb_guard import clock
from asyncdb_guard.failures import FailureKind
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.testing.pools.inside import breaker_of

_LATER = 86_400.0
"""Seconds, longer than any open period."""


@contextmanager
def open_circuit(pool: GuardedPool) -> Generator[None]:
    """Open the pool's circuit for a `with` block, and close it in the end.

    In the block `acquire()` raises CircuitOpenError without touching the network. It is the real breaker, which has
    just counted BREAKER_FAIL_MAX failures: it tells the listeners (`circuit_opened`), and after its open period
    (`retry_after`) it lets a trial through. `ManualClock.advance()` gets there at once. A circuit that was open before
    stays open.
    """
    breaker = breaker_of(pool)
    if breaker.state == "open":
        yield
        return
    permit = breaker.generation
    while breaker.generation == permit:
        breaker.failed(permit, clock.now(), FailureKind.ANSWERED, alone=False)
    try:
        yield
    finally:
        close_circuit(pool)


def close_circuit(pool: GuardedPool) -> None:
    """Close the pool's circuit, as a successful trial does after any open period."""
    breaker = breaker_of(pool)
    if breaker.state != "closed":
        monotonic, wall = clock.now()
        breaker.succeeded(breaker.admit((monotonic + _LATER, wall + _LATER)))
