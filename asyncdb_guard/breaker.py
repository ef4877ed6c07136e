"""The circuit breaker: aiobreaker's states, storage and listeners, with our own clock and admission.

aiobreaker 1.2 never runs a call here. Its `call_async` takes asyncpg's error classes for predicates (`type(x) is type`
is false for a class with a metaclass), admits every caller to a half-open circuit, counts excluded errors as successes,
raises its own error in place of the cause, and computes with `datetime.utcnow()`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

from aiobreaker import CircuitBreaker as Circuit
from aiobreaker import CircuitBreakerListener, CircuitBreakerState
from aiobreaker.storage.memory import CircuitMemoryStorage

from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.errors import CircuitOpenError
from asyncdb_guard.events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitRejected,
    Event,
)
from asyncdb_guard.failure_kind import FailureKind

CircuitState: TypeAlias = Literal["closed", "open", "half_open"]

_CLOSED = CircuitBreakerState.CLOSED
_HALF_OPEN = CircuitBreakerState.HALF_OPEN
_OPEN = CircuitBreakerState.OPEN

_COSTLY = frozenset({FailureKind.SILENT, FailureKind.FULL})
"""Failures after which the circuit stays open twice as long: a trial without an answer costs its caller the timeout,
and one at a full server costs the server a login."""


class CircuitBreaker:
    """Admits callers and learns from their reports; lives as long as its pool.

    A permit is the number of a generation. Each trip, each trial and each recovery starts a new generation, and a
    report with an old permit changes nothing. All times are in seconds. Jitter comes from the operating system's random
    source, so that environments restored from the same snapshot do not retry at the same moments.

    An open period starts at `reset_timeout`, doubles with each failed trial up to `reset_timeout_max`, and is twice as
    long if the server did not answer or is full. The first 57P03 after another failure starts the periods again, as the
    server is starting up. The jitter covers the upper half of the period: that is enough to keep a fleet from retrying
    together, and more would delay the last environments.
    """

    def __init__(
        self,
        *,
        fail_max: int,
        reset_timeout: float,
        reset_timeout_max: float,
        trial_lease: float,
        emit: Callable[[Event], None],
        draw: Callable[[float, float], float] | None = None,
    ) -> None:
        self._fail_max = fail_max
        self._first_period = reset_timeout
        self._longest_period = reset_timeout_max
        self._trial_lease = trial_lease
        self._emit = emit
        self._draw = draw or random.SystemRandom().uniform
        self._period = reset_timeout
        self._kind: FailureKind | None = None
        self._open_for = 0.0
        self._opened_at: Instant = (0.0, 0.0)
        self._trial_since: Instant | None = None
        self._calm = True
        """Whether the circuit is closed with no failure counted: the fast path, with nothing to decide."""
        self.generation = 0
        """The permit for callers admitted now; older permits no longer count."""
        self.openings = 0
        """How often the circuit opened."""
        self._storage = CircuitMemoryStorage(_CLOSED)
        self._circuit = Circuit(state_storage=self._storage, listeners=[_Announcer(self)])

    @property
    def state(self) -> CircuitState:
        """`closed`, `open` or `half_open`."""
        return cast("CircuitState", self._storage.state.name.lower())

    @property
    def failures(self) -> int:
        """Consecutive failures since the last success."""
        return int(self._storage.counter)

    def admit(self, now: Instant) -> int:
        """Return a permit, or raise CircuitOpenError with `retry_after`."""
        if self._calm:
            return self.generation
        state = self._storage.state
        if state is _CLOSED:
            return self.generation
        if state is _OPEN:
            waited = elapsed(self._opened_at, now)
            if waited < self._open_for:
                self._refuse(self._open_for - waited)
            self._enter(_HALF_OPEN)
        if self._trial_since is not None:
            running = elapsed(self._trial_since, now)
            if running < self._trial_lease:
                self._refuse(self._trial_lease - running)
        self._trial_since = now
        self.generation += 1
        return self.generation

    def succeeded(self, permit: int) -> None:
        """Report that the database answered. From a trial, this closes the circuit."""
        if self._calm or permit != self.generation:
            return
        if self._storage.state is _HALF_OPEN:
            self._trial_since = None
            self._period = self._first_period
            self.generation += 1
            self._enter(_CLOSED)
        self._storage.reset_counter()
        self._calm = True

    def failed(self, permit: int, now: Instant, kind: FailureKind, *, alone: bool) -> None:
        """Report that the database failed. The last of `fail_max` in a row, or a trial's, opens the circuit.

        `alone`: it was a connect of a pool that has no session. If that got no answer, it opens the circuit at once, as
        each further attempt would make one more caller hang.
        """
        if permit != self.generation:
            return
        self._calm = False
        self._storage.increment_counter()
        returning = kind is FailureKind.STARTING and self._kind is not FailureKind.STARTING
        self._kind = kind
        if self._storage.state is _HALF_OPEN:
            self._period = self._first_period if returning else min(self._period * 2, self._longest_period)
        elif self._storage.counter < self._fail_max and not (alone and kind is FailureKind.SILENT):
            return
        self._trip(now, self._period * 2 if kind in _COSTLY else self._period)

    def released(self, permit: int) -> None:
        """Report that the caller learned nothing about the database. The next caller may then be the trial."""
        if permit == self.generation:
            self._trial_since = None

    def _trip(self, now: Instant, period: float) -> None:
        self._trial_since = None
        self._opened_at = now
        # a fleet that tripped together must not retry together
        self._open_for = self._draw(period / 2, period)
        self.openings += 1
        self.generation += 1
        self._enter(_OPEN)

    def _enter(self, state: CircuitBreakerState) -> None:
        self._storage.state = state
        # aiobreaker/circuitbreaker.py: reading `state` adopts the storage's state and notifies the listeners
        _ = self._circuit.state

    def _refuse(self, retry_after: float) -> None:
        self._emit(CircuitRejected())
        raise CircuitOpenError(
            f"The circuit is open after repeated database failures. Try again in {retry_after:.1f} s.",
            retry_after=retry_after,
        )

    def announce(self, state: CircuitBreakerState) -> None:
        """Emit the pool's event for a change of state."""
        if state is _OPEN:
            self._emit(CircuitOpened(self._open_for))
        elif state is _HALF_OPEN:
            self._emit(CircuitHalfOpened())
        else:
            self._emit(CircuitClosed())


class _Announcer(CircuitBreakerListener):  # type: ignore[misc]  # aiobreaker is untyped
    """Turns aiobreaker's notifications into the pool's events."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    def state_change(self, breaker: Any, old: Any, new: Any) -> None:
        self._breaker.announce(new.state)
