"""What one simulation, or several of the same, have shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BIN = 0.1
"""Seconds that are counted together."""

_WINDOW = 5
"""Bins over which a share of failures is taken: half a second."""


class Series:
    """How much happened in each bin; lives as long as its result."""

    def __init__(self, seconds: float) -> None:
        self._bins = [0.0] * (math.ceil(seconds / BIN) + 1)
        self._steps = [0.0] * (len(self._bins) + 1)
        """By how much the level of what goes on for whole bins changes at the beginning of each."""

    def add(self, when: float) -> None:
        """Something happened once."""
        index = int(when / BIN)
        if index < len(self._bins):
            self._bins[index] += 1

    def add_span(self, begin: float, end: float, rate: float) -> None:
        """Something went on from `begin` to `end`, `rate` times a second."""
        end = min(end, len(self._bins) * BIN)
        if end <= begin:
            return
        first, last = int(begin / BIN), min(int(end / BIN), len(self._bins) - 1)
        if first == last:
            self._bins[first] += (end - begin) * rate
            return
        self._bins[first] += ((first + 1) * BIN - begin) * rate
        self._bins[last] += (end - last * BIN) * rate
        self._steps[first + 1] += rate * BIN
        self._steps[last] -= rate * BIN

    def values(self) -> list[float]:
        """The sum for each bin."""
        level = 0.0
        values: list[float] = []
        for amount, step in zip(self._bins, self._steps, strict=False):
            level += step
            values.append(amount + level)
        return values


@dataclass
class Result:
    """Sums over `runs` simulations of the same; lists begin when the outage does."""

    environments: int
    capacity: float
    """C, the logins a second that the server can take."""
    outage: float
    """Seconds until the server is back."""
    starting_core_seconds: float
    """What the server could do while it answered 57P03."""
    runs: int = 0
    attempts: list[float] = field(default_factory=list[float])
    """Connects that were begun, in each bin."""
    failed: list[float] = field(default_factory=list[float])
    """Requests that failed, by when they came."""
    requests: list[float] = field(default_factory=list[float])
    peaks: list[float] = field(default_factory=list[float])
    """The most connects in one bin once the server was back, in each run."""
    hung: int = 0
    """Requests that failed only after a timeout, during the outage."""
    starting_cpu: float = 0.0
    bystanders: int = 0
    bystanders_turned_away: int = 0
    added: int = 0
    """Environments that were started as all others were busy."""

    def count(self, attempts: list[float], failed: list[float], requests: list[float]) -> None:
        """Add what one run has shown, by bins."""
        self.runs += 1
        self.attempts = _sum(self.attempts, attempts)
        self.failed = _sum(self.failed, failed)
        self.requests = _sum(self.requests, requests)
        self.peaks.append(max(attempts[self._back :]))

    @property
    def _back(self) -> int:
        return round(self.outage / BIN)

    @property
    def attempts_per_environment(self) -> float:
        """Connects that each environment began during the outage; all of them where there was none."""
        during = self.attempts[: self._back] if self._back else self.attempts
        return sum(during) / self.runs / self.environments

    @property
    def peak(self) -> float:
        """The most connects a second once the server was back, as a share of its capacity; the mean of the runs."""
        return sum(self.peaks) / self.runs / BIN / self.capacity

    @property
    def failed_during(self) -> float:
        """Requests of one run that came in the outage and failed."""
        return sum(self.failed[: self._back]) / self.runs

    @property
    def failed_after(self) -> float:
        """Requests of one run that came once the server was back, and failed all the same."""
        return sum(self.failed[self._back :]) / self.runs

    @property
    def hung_share(self) -> float:
        """The share of the requests failed in the outage that hung until a timeout."""
        return self.hung / self.runs / self.failed_during if self._back else 0.0

    @property
    def starting_share(self) -> float:
        """The share of the server's CPU that 57P03 asked for while it started; 1 where that was more than it has."""
        return min(self.starting_cpu / self.runs / (self.starting_core_seconds or math.inf), 1.0)

    @property
    def bystander_share(self) -> float:
        """The share of somebody else's connects that were turned away once the server was back."""
        return self.bystanders_turned_away / self.bystanders

    def served_after(self, share: float) -> float:
        """Seconds after the server's return from which on at least `share` of all requests are served.

        In each half a second; infinite where that does not happen while one watches.
        """
        failed, requests = self.failed[self._back :], self.requests[self._back :]
        late = -1
        for index in range(len(failed)):
            window = slice(index, index + _WINDOW)
            if sum(failed[window]) > (1 - share) * sum(requests[window]):
                late = index
        return math.inf if late >= len(failed) - _WINDOW else (late + 1) * BIN


def _sum(left: list[float], right: list[float]) -> list[float]:
    return [one + other for one, other in zip(left, right, strict=True)] if left else right
