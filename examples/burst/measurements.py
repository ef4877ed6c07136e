"""The observations of one run, and the figures derived from them. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from examples.burst.scenario import PoolName, Scenario


@dataclass(frozen=True, slots=True)
class Sample:
    """How many sessions of the fleet the server showed at one moment."""

    at: float
    sessions: int


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of the bystander while the database was up. `error`: why it failed, or None."""

    at: float
    error: str | None


@dataclass(frozen=True, slots=True)
class SignUp:
    """One sign-up with all its attempts. `at`: when it started; `error`: the last attempt's, or None."""

    at: float
    seconds: float
    error: str | None
    failures: list[float] = field(default_factory=list)
    """When an attempt had failed."""


@dataclass(slots=True)
class Run:
    """Everything observed in one run. Times are in seconds since the burst began."""

    pool: PoolName
    scenario: Scenario
    phase: str = "starting"
    now: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    sign_ups: list[SignUp] = field(default_factory=list)
    outage: tuple[float, float] = (math.inf, math.inf)
    """When the database went down, and when it was back."""
    attempts: int = 0
    """Connections that reached the database's port while it was down."""

    @property
    def peak(self) -> int:
        return max((sample.sessions for sample in self.samples), default=0)

    @property
    def turned_away(self) -> int:
        """The bystander's failures while the database was up."""
        return sum(visit.error is not None for visit in self.visits)

    @property
    def served(self) -> int:
        return len(self.visits) - self.turned_away

    @property
    def done(self) -> int:
        return len(self.sign_ups) - self.failed

    @property
    def failed(self) -> int:
        return sum(sign_up.error is not None for sign_up in self.sign_ups)

    @property
    def failures(self) -> list[float]:
        """When attempts of sign-ups had failed, in order."""
        return sorted(moment for sign_up in self.sign_ups for moment in sign_up.failures)

    @property
    def failed_after(self) -> int:
        """Attempts of sign-ups that failed after the database was back."""
        return sum(moment > self.outage[1] for moment in self.failures)

    @property
    def last_failure(self) -> float:
        """Seconds from the database's return to the last attempt that failed; 0 if none did."""
        return max((moment - self.outage[1] for moment in self.failures if moment > self.outage[1]), default=0.0)

    @property
    def limit(self) -> int:
        """The sessions that the fleet may have at most, by its own limits or the role's."""
        return self.scenario.role_limit if self.pool == "fleet" else self.scenario.processes

    @property
    def done_before_outage(self) -> int:
        """Sign-ups that succeeded before the outage, when the only load on the database was the fleet itself."""
        return sum(s.error is None and s.at + s.seconds < self.outage[0] for s in self.sign_ups)

    def percentile(self, percent: float) -> float:
        """The percentile of the successful sign-ups' times, in seconds; NaN without any."""
        times = sorted(sign_up.seconds for sign_up in self.sign_ups if sign_up.error is None)
        return times[math.ceil(len(times) * percent / 100) - 1] if times else math.nan


def shown(plain: Run, *guarded: Run) -> bool:
    """Whether the runs show what the demo claims."""
    return plain.turned_away > 0 and all(
        run.turned_away == 0 and run.peak <= run.limit and run.done > plain.done and run.attempts < plain.attempts
        for run in guarded
    )
