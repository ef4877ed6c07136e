"""The circuit breaker: aiobreaker's states, storage and listeners, with our own clock and admission.

aiobreaker 1.2 never runs a call here. Its `call_async` takes asyncpg's error classes for predicates (`type(x) is type`
is false for a class with a metaclass), admits every caller to a half-open circuit, counts excluded errors as successes,
raises its own error in place of the cause, and computes with `datetime.utcnow()`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

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
from asyncdb_guard.failures import FailureKind
from asyncdb_guard.news import STRETCH_MAX, WITNESSES, WITNESSES_MAX, News

CircuitState: TypeAlias = Literal["closed", "open", "half_open"]
"""The state of a circuit. `half_open`: one caller is the trial, and all others are refused."""

_CLOSED = CircuitBreakerState.CLOSED
_HALF_OPEN = CircuitBreakerState.HALF_OPEN
_OPEN = CircuitBreakerState.OPEN

_COSTLY = frozenset({FailureKind.SILENT, FailureKind.FULL})
"""Failures after which the circuit stays open twice as long: a trial without an answer costs its caller the timeout,
and one at a full server costs the server a login."""


class _Turn(NamedTuple):
    """When a circuit may try in a recovery that the fleet has told of."""

    recovery: str | None
    since: Instant
    wait: float
    """Seconds."""


class CircuitBreaker:
    """Admits callers and learns from their reports; lives as long as its pool.

    A permit is the number of a generation. Each trip, each trial and each recovery starts a new generation, and a
    report with an old permit changes nothing. All times are in seconds. Jitter comes from the operating system's random
    source, so that environments restored from the same snapshot do not retry at the same moments.

    An open period starts at `reset_timeout`, doubles with each failed trial up to `reset_timeout_max`, and is twice as
    long if the server did not answer or is full. The first 57P03 after another failure starts the periods again, as the
    server is starting up. The jitter covers the upper half of the period: that is enough to keep a fleet from retrying
    together, and more would delay the last environments.

    With news of the fleet (`hear`), the longest period is up to STRETCH_MAX times as long. Once a trial elsewhere has
    succeeded after this circuit's own last attempt began, its turn is drawn from the first `reset_timeout` seconds of
    that recovery, in place of its period. Each trial that fails all the same doubles those seconds, up to
    `reset_timeout_max`, and nothing that the news say makes the next turn earlier than half of them after the failure.
    So false news cost about what no news cost. Without news, none of this applies.
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
        """The open period without news."""
        self._opened_at: Instant = (0.0, 0.0)
        self._began: Instant = (0.0, 0.0)
        """When the last attempt that failed began."""
        self._trial_since: Instant | None = None
        self._news: News | None = None
        self._turn: _Turn | None = None
        self._spread = reset_timeout
        """Seconds of a recovery from which a turn is drawn."""
        self._others = 0
        """How many environments are known to have opened their circuits in this outage; 0 if that is unknown."""
        self._held_at: Instant = (0.0, 0.0)
        self._hold = 0.0
        """Seconds from then on in which news bring no turn forward, as a trial that followed them failed."""
        self._follows_news = False
        """Whether the trial was admitted because of the news."""
        self._alone = False
        """Whether the last failure was a connect of a pool that has no session."""
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

    @property
    def wants_news(self) -> bool:
        """Whether news of the fleet would change what the next caller is told. False on the healthy path."""
        if self._calm:
            return False
        state = self._storage.state
        return state is _OPEN or (state is _CLOSED and self._alone)

    def hear(self, news: News | None, now: Instant) -> None:
        """Take in what the fleet's store says; None if it says nothing.

        A pool without a session, whose connect has failed, opens its circuit if several other environments have opened
        theirs. So new environments, which Lambda also starts during an outage, make one attempt and not `fail_max`.
        """
        self._news = news
        if news is None:
            return
        self._others = max(self._others, news.open)
        if news.open >= WITNESSES and self.wants_news and self._storage.state is _CLOSED:
            self._trip(now)

    def admit(self, now: Instant) -> int:
        """Return a permit, or raise CircuitOpenError with `retry_after`."""
        if self._calm:
            return self.generation
        state = self._storage.state
        if state is _CLOSED:
            return self.generation
        if state is _OPEN:
            missing = self._missing(now)
            if missing > 0:
                self._refuse(missing)
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
            self._period = self._spread = self._first_period
            self._turn = self._news = None
            self._hold = 0.0
            self._others = 0
            self.generation += 1
            self._enter(_CLOSED)
        self._storage.reset_counter()
        self._calm = True

    def failed(
        self, permit: int, now: Instant, kind: FailureKind, *, alone: bool, began: Instant | None = None
    ) -> None:
        """Report that the database failed. The last of `fail_max` in a row, or a trial's, opens the circuit.

        `alone`: it was a connect of a pool that has no session. If that got no answer, it opens the circuit at once, as
        each further attempt would make one more caller hang. `began`: when the attempt began; now, if that is unknown.
        """
        if permit != self.generation:
            return
        self._calm = False
        self._storage.increment_counter()
        returning = kind is FailureKind.STARTING and self._kind is not FailureKind.STARTING
        self._kind = kind
        self._alone = alone
        self._began = self._trial_since or began or now
        if self._storage.state is _HALF_OPEN:
            longest = STRETCH_MAX * self._longest_period
            self._period = self._first_period if returning else min(self._period * 2, longest)
            if self._follows_news:
                self._double_spread(now)
        elif self._storage.counter < self._fail_max and not (alone and kind is FailureKind.SILENT):
            return
        self._trip(now)

    def released(self, permit: int) -> None:
        """Report that the caller learned nothing about the database. The next caller may then be the trial."""
        if permit == self.generation:
            self._trial_since = None

    @property
    def _cost(self) -> int:
        return 2 if self._kind in _COSTLY else 1

    def _double_spread(self, now: Instant) -> None:
        self._spread = min(2 * self._spread, self._longest_period)
        self._held_at = now
        self._hold = self._cost * self._draw(self._spread / 2, self._spread)

    def _missing(self, now: Instant) -> float:
        """Seconds for which an open circuit stays open, from now on."""
        waited = elapsed(self._opened_at, now)
        news = self._news
        self._follows_news = news is not None and news.succeeded_since(self._began, now)
        if news is None:
            return self._open_for - waited
        if not self._follows_news:
            return self._stretched(news.stretch) - waited
        if self._turn is None or self._turn.recovery != news.recovery:
            age = news.since + elapsed(news.at, now)
            # a few need not be spread as far as a fleet
            share = min(self._others / WITNESSES_MAX, 1.0) if self._others else 1.0
            self._turn = _Turn(news.recovery, now, self._draw(0.0, share * self._spread) - age)
        missing = max(self._turn.wait - elapsed(self._turn.since, now), self._hold - elapsed(self._held_at, now))
        # whatever the store says, and however often it changes its mind
        return min(missing, self._stretched(STRETCH_MAX) + self._spread - waited)

    def _stretched(self, factor: float) -> float:
        """The open period where the longest is `factor` times as long."""
        if self._period <= self._longest_period:
            return self._open_for
        return self._open_for * min(self._period / self._longest_period, factor)

    def _trip(self, now: Instant) -> None:
        self._trial_since = None
        self._opened_at = now
        period = self._cost * min(self._period, self._longest_period)
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
            self._emit(CircuitOpened(self._stretched(1.0 if self._news is None else self._news.stretch)))
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
