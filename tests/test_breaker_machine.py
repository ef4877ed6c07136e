"""The breaker and a simple model side by side, through any story of callers, clocks and freezes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.errors import CircuitOpenError
from asyncdb_guard.failures import FailureKind

FAIL_MAX, FIRST, LONGEST, LEASE = 3, 8.0, 20.0, 4.0
KINDS = st.sampled_from(FailureKind)
TICKS = st.integers(0, 100).map(lambda ticks: ticks / 4)  # exact as floats, so that sums of them compare equal


class Caller:
    """Somebody whom the model admitted. What he reports counts until somebody else's news makes it stale."""

    def __init__(self, permit: int) -> None:
        self.permit = permit
        self.stale = False


class Stopwatch:
    """Seconds since it was started: the most that either clock shows, and never less than none."""

    def __init__(self) -> None:
        self.monotonic = 0.0
        self.wall = 0.0

    @property
    def seconds(self) -> float:
        return max(0.0, self.monotonic, self.wall)


class BreakerMachine(RuleBasedStateMachine):
    """The model knows no generations and no instants: it keeps lists of callers, and stopwatches."""

    callers = Bundle("callers")

    def __init__(self) -> None:
        super().__init__()
        self.now = (5000.0, 1_700_000_000.0)
        self.jitter = 0.0
        self.heard: list[str] = []
        self.breaker = CircuitBreaker(
            fail_max=FAIL_MAX, reset_timeout=FIRST, reset_timeout_max=LONGEST, trial_lease=LEASE,
            emit=lambda event: self.heard.append(event.name),
            draw=lambda low, high: low + self.jitter * (high - low),
        )  # fmt: skip
        self.state = "closed"
        self.failures = 0
        self.failed_trials = 0
        self.last_kind: FailureKind | None = None
        self.open_for = 0.0
        self.since_trip = Stopwatch()
        self.since_trial = Stopwatch()
        self.trial: Caller | None = None
        self.admitted: list[Caller] = []
        self.told: list[str] = []

    def pass_time(self, monotonic: float, wall: float) -> None:
        self.now = (self.now[0] + monotonic, self.now[1] + wall)
        for watch in (self.since_trip, self.since_trial):
            watch.monotonic += monotonic
            watch.wall += wall

    @rule(seconds=TICKS)
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds, seconds)

    @rule(seconds=TICKS)
    def the_process_is_frozen(self, seconds: float) -> None:
        self.pass_time(0.0, seconds)

    @rule(seconds=st.integers(-4000, 4000).map(lambda ticks: ticks / 4))
    def the_wall_clock_is_set(self, seconds: float) -> None:
        self.pass_time(0.0, seconds)

    @rule(seconds=st.integers(-400, 400).map(lambda ticks: ticks / 4))
    def the_process_is_restored_from_a_snapshot(self, seconds: float) -> None:
        """On another machine, whose monotonic clock began at another time."""
        self.pass_time(seconds, 0.0)

    @precondition(lambda self: self.expected_refusal() is not None)
    @rule()
    def whoever_was_refused_waits_as_told(self) -> None:
        missing = self.expected_refusal()
        assert missing is not None
        self.pass_time(missing, missing)

    @rule(jitter=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    def chance_decides_otherwise(self, jitter: float) -> None:
        self.jitter = jitter

    def expected_refusal(self) -> float | None:
        """What the model tells somebody who asks now: the seconds to wait, or None if he may go."""
        if self.state == "open" and self.since_trip.seconds < self.open_for:
            return self.open_for - self.since_trip.seconds
        if self.state == "half_open" and self.trial is not None and self.since_trial.seconds < LEASE:
            return LEASE - self.since_trial.seconds
        return None

    @rule(target=callers)
    def somebody_asks(self):
        refusal = self.expected_refusal()
        if refusal is not None:
            with pytest.raises(CircuitOpenError) as caught:
                self.breaker.admit(self.now)
            assert caught.value.retry_after == refusal
            self.told.append("circuit_rejected")
            return multiple()
        return self.somebody_goes()

    def somebody_goes(self) -> Caller:
        caller = Caller(self.breaker.admit(self.now))
        if self.state == "open":
            self.state = "half_open"
            self.told.append("circuit_half_opened")
        if self.state == "half_open":
            self.forget_everybody()
            self.trial = caller
            self.since_trial = Stopwatch()
        self.admitted.append(caller)
        return caller

    @rule(caller=callers)
    def a_caller_succeeds(self, caller: Caller) -> None:
        self.breaker.succeeded(caller.permit)
        if caller.stale:
            return
        self.failures = 0
        if self.state == "half_open":
            self.state = "closed"
            self.trial = None
            self.forget_everybody()
            self.told.append("circuit_closed")

    @rule(caller=callers, kind=KINDS, alone=st.booleans())
    def a_caller_fails(self, caller: Caller, kind: FailureKind, alone: bool) -> None:
        self.breaker.failed(caller.permit, self.now, kind, alone=alone)
        if caller.stale:
            return
        self.failures += 1
        last_kind, self.last_kind = self.last_kind, kind
        if self.state == "half_open":
            self.failed_trials += 1
            if kind is FailureKind.STARTING and last_kind is not FailureKind.STARTING:
                self.failed_trials = 0
        elif self.failures >= FAIL_MAX or (kind is FailureKind.SILENT and alone):
            self.failed_trials = 0
        else:
            return
        period = min(FIRST * 2**self.failed_trials, LONGEST)
        if kind in (FailureKind.SILENT, FailureKind.FULL):
            period *= 2
        self.state = "open"
        self.open_for = period / 2 + self.jitter * period / 2
        self.since_trip = Stopwatch()
        self.trial = None
        self.forget_everybody()
        self.told.append("circuit_opened")

    @precondition(lambda self: self.state == "closed")
    @rule(kind=KINDS, alone=st.booleans())
    def the_database_goes_down(self, kind: FailureKind, alone: bool) -> None:
        while self.state == "closed":
            self.a_caller_fails(self.somebody_goes(), kind, alone)

    @precondition(lambda self: self.expected_refusal() is None)
    @rule()
    def the_next_caller_succeeds(self) -> None:
        self.a_caller_succeeds(self.somebody_goes())

    @precondition(lambda self: self.expected_refusal() is None)
    @rule(kind=KINDS)
    def the_next_caller_fails(self, kind: FailureKind) -> None:
        self.a_caller_fails(self.somebody_goes(), kind, alone=False)

    @rule(caller=callers)
    def a_caller_learns_nothing(self, caller: Caller) -> None:
        self.breaker.released(caller.permit)
        if caller is self.trial:
            self.trial = None

    def forget_everybody(self) -> None:
        for caller in self.admitted:
            caller.stale = True
        self.admitted.clear()

    @invariant()
    def both_agree(self) -> None:
        assert self.breaker.state == self.state
        assert self.breaker.failures == self.failures
        assert self.heard == self.told
        assert (self.breaker._trial_since is None) == (self.trial is None)

    @invariant()
    def an_open_or_half_open_circuit_listens_to_one_caller_at_most(self) -> None:
        listening = [caller for caller in self.admitted if caller.permit == self.breaker.generation]
        assert listening == self.admitted
        if self.state == "open":
            assert not listening
        if self.state == "half_open":
            assert len(listening) <= 1


BreakerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestBreakerMachine = pytest.mark.slow(BreakerMachine.TestCase)
