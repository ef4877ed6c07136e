"""Two or three environments and one store, with clocks apart and messages lost: no story keeps them from the server."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.errors import CircuitOpenError
from asyncdb_guard.failures import FailureKind
from asyncdb_guard.fleet.words import StoreModel
from asyncdb_guard.news import STRETCH_MAX, News

FIRST, LONGEST = 2.0, 5.0
PERIOD_MAX = 2 * STRETCH_MAX * LONGEST + LONGEST
"""Seconds after which any circuit lets somebody try."""
SECONDS = st.integers(0, 40).map(lambda ticks: ticks / 8)
EXACTLY = 1e-6


class Environment:
    """A breaker, the clocks of its machine, and what it has done."""

    def __init__(self, ahead: float, jitter: float) -> None:
        self.ahead = ahead
        self.jitter = jitter
        self.breaker = CircuitBreaker(
            fail_max=3, reset_timeout=FIRST, reset_timeout_max=LONGEST, trial_lease=5.0, emit=lambda event: None,
            draw=lambda low, high: low + self.jitter * (high - low),
        )  # fmt: skip
        self.heard: News | None = None
        self.retry_after = 0.0
        self.led: list[float] = []
        """When it tried because of the news, since its circuit was closed last."""


class FleetMachine(RuleBasedStateMachine):
    """The policy is the real one, and the store's model loses what it is told to lose."""

    @initialize(ahead=st.lists(st.integers(-3600, 3600), min_size=2, max_size=3))
    def begin(self, ahead: list[int]) -> None:
        self.now = 10_000.0
        self.store = StoreModel()
        self.outage: FailureKind | None = None
        self.fleet = [Environment(float(seconds), 0.5) for seconds in ahead]

    @rule(kind=st.none() | st.sampled_from(FailureKind))
    def the_database_changes(self, kind: FailureKind | None) -> None:
        self.outage = kind

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(index=st.integers(0, 2), seconds=st.integers(-60, 60))
    def a_wall_clock_is_set(self, index: int, seconds: int) -> None:
        """No decision compares two machines' clocks; what one's own says of a duration is breaker.py's matter."""
        environment = self.fleet[index % len(self.fleet)]
        if environment.breaker.state == "closed":
            environment.ahead += seconds

    @rule(index=st.integers(0, 2), jitter=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    def chance_decides_otherwise(self, index: int, jitter: float) -> None:
        self.fleet[index % len(self.fleet)].jitter = jitter

    @rule(index=st.integers(0, 2), asked=st.booleans(), told=st.booleans())
    def a_request_comes(self, index: int, asked: bool, told: bool) -> None:
        self.request(self.fleet[index % len(self.fleet)], asked=asked, told=told)

    @rule(pause=st.sampled_from([0.05, 0.25, 1.0, 3.0]), times=st.integers(1, 12), lost=st.integers(0, 2**12))
    def requests_come_everywhere(self, pause: float, times: int, lost: int) -> None:
        for number in range(times):
            self.now += pause
            for environment in self.fleet:
                self.request(environment, asked=not lost >> number & 1, told=not lost >> number & 2)

    def request(self, environment: Environment, *, asked: bool = True, told: bool = True) -> bool:
        """`asked`, `told`: whether the store's answer, and what it is told, arrive. Return whether it was served."""
        breaker, clock = environment.breaker, (self.now + environment.ahead,) * 2
        if breaker.wants_news:
            environment.heard = self.store.look(clock, self.now) if asked else None
            breaker.hear(environment.heard, clock)
        was_open = breaker.state == "open"
        try:
            permit = breaker.admit(clock)
        except CircuitOpenError as error:
            environment.retry_after = error.retry_after or 0.0
            return False
        environment.retry_after = 0.0
        if was_open and breaker._follows_news:
            environment.led.append(self.now)
        before = breaker.generation
        if self.outage is None:
            breaker.succeeded(permit)
            if breaker.generation != before:
                environment.led.clear()
                if told and not (environment.heard and environment.heard.speaks_for_recovery(clock)):
                    self.store.tell_recovered(self.now)
            return True
        breaker.failed(permit, clock, self.outage, alone=True, began=clock)
        if breaker.generation != before and told:
            self.store.tell_open(environment, 2 * STRETCH_MAX * LONGEST, self.now)
        return False

    @invariant()
    def nobody_is_told_to_wait_for_longer_than_the_longest_period(self) -> None:
        for environment in getattr(self, "fleet", ()):
            assert 0.0 <= environment.retry_after <= PERIOD_MAX

    @invariant()
    def in_a_spread_there_is_one_wave_of_trials_at_most(self) -> None:
        """So that a server that comes back sees each environment once."""
        for environment in getattr(self, "fleet", ()):
            for earlier, later in zip(environment.led, environment.led[1:], strict=False):
                assert later - earlier >= FIRST - EXACTLY

    def teardown(self) -> None:
        """However the story went: with the database well, all are back, and at the latest after the longest period."""
        if not hasattr(self, "fleet"):
            return
        self.outage = None
        back = self.now
        waiting = list(self.fleet)
        while waiting:
            assert self.now - back <= PERIOD_MAX + FIRST
            waiting = [one for one in waiting if not self.request(one, asked=int(self.now * 4) % 3 > 0)]
            self.now += 0.25
        for environment in self.fleet:
            assert environment.breaker.state == "closed"


FleetMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestFleetMachine = pytest.mark.slow(FleetMachine.TestCase)


def test_with_the_store_a_fleet_of_three_is_back_within_the_first_period_and_without_it_is_not() -> None:
    """The bound of the machine is loose, as messages are lost there: here none is."""
    waits: list[float] = []
    for asked in (True, False):
        machine = FleetMachine()
        machine.begin([0, 60, -60])
        machine.outage = FailureKind.ANSWERED
        for _ in range(4 * 120):
            machine.now += 0.25
            for environment in machine.fleet:
                machine.request(environment, asked=asked)
        for environment, jitter in zip(machine.fleet, (0.0, 0.6, 1.0), strict=True):
            environment.jitter = jitter
        # the first comes back by its own period
        machine.outage = None
        while not machine.request(machine.fleet[0], asked=asked):
            machine.now += 0.05
        began = machine.now
        others = machine.fleet[1:]
        while others := [one for one in others if not machine.request(one, asked=asked)]:
            machine.now += 0.05
        waits.append(machine.now - began)
    with_store, without = waits
    assert with_store <= FIRST + 0.1
    assert without <= LONGEST
