"""A fleet with the real circuit breaker, before a modelled server, through an outage. Discrete events, no I/O.

Requests come at random, at `rate` a second and environment, to an idle environment; each serves one at a time. Where
all are busy Lambda starts one more, up to as many again. What decides nothing is reckoned, not simulated: the refusals
of an open circuit until its `retry_after`, and the requests of an environment that has its session. So 100,000
environments take half a minute.
"""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass

from asyncdb_guard.breaker import CircuitBreaker
from asyncdb_guard.errors import CircuitOpenError
from asyncdb_guard.events import Event
from asyncdb_guard.failures import FailureKind
from asyncdb_guard.fleet.policy import OpenPeriods
from asyncdb_guard.fleet.results import Result, Series
from asyncdb_guard.fleet.scenarios import Reach, Scenario
from asyncdb_guard.fleet.server import CONNECT_TIMEOUT, Connect, Server, ServerModel
from asyncdb_guard.fleet.timeline import Timeline
from asyncdb_guard.fleet.words import StoreModel
from asyncdb_guard.news import STRETCH_MAX, News

COMMAND_TIMEOUT = 3.0
"""Seconds for one statement, the default of COMMAND_TIMEOUT_MS."""

_PING_AFTER = 1.0
"""Seconds of idleness after which the pool pings a session before it lends it."""

_BYSTANDER = -1
_BYSTANDER_PAUSE = 0.05
"""Seconds between two connects of somebody who has nothing to do with the fleet."""

_IDLE_DRAWS = 40
"""Environments that are looked at to find an idle one; beyond these, all count as busy."""

_ENOUGH = 4000
"""Environments, over all runs, that make a share of one percent steady."""

_NO_SESSION, _LIVE, _HANGING = range(3)


@dataclass(frozen=True)
class Gate:
    """The breaker's settings, in seconds."""

    periods: OpenPeriods
    fail_max: int = 3
    store: bool = False
    """Whether the fleet has a store, FLEET_URL, that is well."""


@dataclass(frozen=True)
class FleetModel:
    """The environments; each has a pool with one session."""

    environments: int
    rate: float = 1.0
    """Requests a second and environment."""
    gate: Gate | None = None
    """None: nothing stands between a request and the database."""


def simulate(
    fleet: FleetModel, server: ServerModel, scenario: Scenario, *, seed: int = 0, runs: int | None = None
) -> Result:
    """Run the scenario, a small fleet several times over; the same seed gives the same result.

    `runs`: as many as needed for steady figures, unless given.
    """
    starting = scenario.starting * server.vcpu
    result = Result(fleet.environments, server.capacity, scenario.seconds, starting)
    for number in range(runs or max(1, _ENOUGH // fleet.environments)):
        collecting = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and a collection looks at millions of planned events
        try:
            _Run(fleet, server, scenario, random.Random(f"{seed}/{number}")).into(result)
        finally:
            if collecting:
                gc.enable()
    return result


class _Run:
    """One simulation from the outage's first instant to the end."""

    def __init__(self, fleet: FleetModel, server: ServerModel, scenario: Scenario, rng: random.Random) -> None:
        self._fleet = fleet
        self._scenario = scenario
        self._rng = rng
        self._timeline = Timeline()
        self._server = Server(self._timeline, server, fleet.rate)
        self._end = scenario.seconds + scenario.watched
        count = fleet.environments
        self._busy = [False] * count
        self._session = [_HANGING if scenario.sessions_hang else _NO_SESSION] * count
        self._breakers: dict[int, CircuitBreaker] = {}
        """Of those that have met a failure."""
        self._store = StoreModel() if fleet.gate is not None and fleet.gate.store else None
        self._news: dict[int, News] = {}
        """What each environment has heard last."""
        self._spare: list[int] = []
        """The idle ones that were added."""
        self._live_since: list[float] = []
        self._attempts, self._failed, self._requests = (Series(self._end) for _ in range(3))
        self._hung = 0
        self._bystanders = _Bystanders(self._timeline, self._server)

    def into(self, result: Result) -> None:
        """Simulate, and add what that shows to `result`."""
        timeline, rng, rate = self._timeline, self._rng, self._fleet.rate
        begin = 0.0
        for seconds, reach in self._scenario.phases:
            timeline.at(begin, self._enter, reach)
            begin += seconds
        timeline.at(begin, self._enter, Reach.UP)
        timeline.at(begin + _BYSTANDER_PAUSE / 2, self._bystanders.connect)
        for environment in range(self._fleet.environments):
            timeline.at(rng.expovariate(rate), self._arrive, environment)
        timeline.run(self._end)
        for since in self._live_since:
            self._requests.add_span(since, self._end, rate)
        # the last bin is not a whole one
        result.count(*(series.values()[:-1] for series in (self._attempts, self._failed, self._requests)))
        result.hung += self._hung
        result.starting_cpu += self._server.starting_cpu
        result.bystanders += self._bystanders.tries
        result.bystanders_turned_away += self._bystanders.turned_away
        result.added += len(self._busy) - self._fleet.environments

    def _enter(self, reach: Reach) -> None:
        self._server.reach = reach

    def _arrive(self, environment: int) -> None:
        """A request comes for this environment; another one takes it if this one is busy."""
        if self._session[environment] == _LIVE:
            return  # reckoned from its connect on
        now, rate = self._timeline.now, self._fleet.rate
        retry_after = 0.0
        if self._busy[environment]:
            other = self._pick_idle()
            if other is None:
                self._count_failed(now)
            else:
                self._request(other)
        else:
            retry_after = self._request(environment)
        if retry_after:
            if self._store is not None:
                # news may come once the server is back, and then each request decides something
                retry_after = min(retry_after, max(self._scenario.seconds - now, 0.0))
            until = min(now + retry_after, self._end)
            self._failed.add_span(now, until, rate)
            self._requests.add_span(now, until, rate)
        self._timeline.at(now + retry_after + self._rng.expovariate(rate), self._arrive, environment)

    def _request(self, environment: int) -> float:
        """Serve a request in an idle environment. Return the seconds for which it is refused, if it is."""
        now = self._timeline.now
        try:
            permit = self._admit(environment, now)
        except CircuitOpenError as error:
            self._leave(environment)
            self._count_failed(now)
            return error.retry_after or 0.0
        session = self._session[environment]
        if session == _LIVE:
            self._requests.add(now)
            return 0.0
        self._busy[environment] = True
        connect = Connect(self, environment, permit, now, now)
        if session == _HANGING:
            self._session[environment] = _NO_SESSION
            if self._server.reach is Reach.SILENT:
                self._attempts.add(now)
                self._hang(connect)
                return 0.0
        self._attempts.add(now)
        self._server.connect(connect)
        return 0.0

    def _hang(self, connect: Connect) -> None:
        """A session that died unseen: one used just now is lent, one that has rested is pinged, and replaced."""
        # its last use was before the outage; how long before has the same distribution as any gap
        rested = connect.began + self._rng.expovariate(self._fleet.rate) >= _PING_AFTER
        if rested:
            self._timeline.at(connect.began + CONNECT_TIMEOUT, self.failed, connect, FailureKind.SILENT)
        else:
            self._timeline.at(connect.began + COMMAND_TIMEOUT, self._statement_failed, connect)

    def _admit(self, environment: int, now: float) -> int:
        breaker = self._breakers.get(environment)
        if breaker is None:
            return 0
        if self._store is not None and breaker.wants_news:
            news = self._news[environment] = self._store.look((now, now), now)
            breaker.hear(news, (now, now))
        return breaker.admit((now, now))

    def connected(self, connect: Connect) -> None:
        """A connect succeeded, and the statement with it."""
        now, environment = self._timeline.now, connect.environment
        self._session[environment] = _LIVE
        if environment < self._fleet.environments:
            self._live_since.append(now)
        if environment in self._breakers:
            self._succeeded(environment, connect.permit)
        self._requests.add(connect.asked)
        self._leave(environment)

    def _succeeded(self, environment: int, permit: int) -> None:
        now, breaker = self._timeline.now, self._breakers[environment]
        before = breaker.generation
        breaker.succeeded(permit)
        if self._store is not None and breaker.generation != before:
            heard = self._news.get(environment)
            if heard is None or not heard.speaks_for_recovery((now, now)):
                self._store.tell_recovered(now)

    def failed(self, connect: Connect, kind: FailureKind) -> None:
        """A connect failed; the pool has no session besides."""
        self._report(connect, kind, alone=True)

    def _statement_failed(self, connect: Connect) -> None:
        self._report(connect, FailureKind.SILENT, alone=False)

    def _report(self, connect: Connect, kind: FailureKind, *, alone: bool) -> None:
        now, environment = self._timeline.now, connect.environment
        gate = self._fleet.gate
        if gate is not None:
            breaker = self._breakers.get(environment)
            if breaker is None:
                breaker = self._breakers[environment] = _breaker(gate, self._rng)
            before = breaker.generation
            breaker.failed(connect.permit, (now, now), kind, alone=alone, began=(connect.began, connect.began))
            if self._store is not None and breaker.generation != before:
                self._store.tell_open(environment, 2 * STRETCH_MAX * gate.periods.longest, now)
        if kind is FailureKind.SILENT and connect.asked < self._scenario.seconds:
            self._hung += 1
        self._count_failed(connect.asked)
        self._leave(environment)

    def _count_failed(self, asked: float) -> None:
        self._failed.add(asked)
        self._requests.add(asked)

    def _leave(self, environment: int) -> None:
        self._busy[environment] = False
        if environment >= self._fleet.environments:
            self._spare.append(environment)

    def _pick_idle(self) -> int | None:
        """An idle environment, a new one if there is none; None where Lambda starts no more."""
        count = self._fleet.environments
        for _ in range(_IDLE_DRAWS):
            environment = int(self._rng.random() * count)
            if not self._busy[environment]:
                return environment
        if self._spare:
            return self._spare.pop()
        if len(self._busy) >= 2 * count:
            return None
        self._busy.append(False)
        self._session.append(_NO_SESSION)
        return len(self._busy) - 1


class _Bystanders:
    """Somebody else's service, which connects, asks and leaves; lives as long as one simulation."""

    def __init__(self, timeline: Timeline, server: Server) -> None:
        self._timeline = timeline
        self._server = server
        self.tries = 0
        self.turned_away = 0

    def connect(self) -> None:
        """Connect, and do so again and again."""
        now = self._timeline.now
        self.tries += 1
        self._server.connect(Connect(self, _BYSTANDER, 0, now, now))
        self._timeline.at(now + _BYSTANDER_PAUSE, self.connect)

    def connected(self, connect: Connect) -> None:
        """It leaves at once, and holds no slot."""

    def failed(self, connect: Connect, kind: FailureKind) -> None:
        """It was turned away."""
        self.turned_away += 1


def _breaker(gate: Gate, rng: random.Random) -> CircuitBreaker:
    return CircuitBreaker(
        fail_max=gate.fail_max,
        reset_timeout=gate.periods.first,
        reset_timeout_max=gate.periods.longest,
        trial_lease=CONNECT_TIMEOUT + COMMAND_TIMEOUT,
        emit=_ignore,
        draw=rng.uniform,
    )


def _ignore(event: Event) -> None:
    """Nobody listens."""
