"""Which open periods fit a fleet of a known size. Pure.

The two numbers follow from one quotient: N environments that each hold one session, before a server that takes C
logins a second, are all back after N/C seconds at the earliest. Shorter periods only ask more often than the server can
answer; longer ones keep environments away from a server that is idle.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

LOGINS_PER_VCPU = 200.0
"""Logins a second that one vCPU takes. Each costs 4.4 to 5.5 ms of CPU with TLS and SCRAM (measured, PostgreSQL 15)."""

IAM_LOGINS = 200.0
"""Logins a second with IAM tokens. RDS throttles above this, whatever the instance's size (UsingWithRDS.IAMDBAuth)."""

_FIRST_MIN, _LONGEST_MIN = 0.5, 2.0
"""Seconds. A shorter wait gains nothing that a caller notices."""

_MEAN = 0.75
"""Of a period, as jitter is drawn from its upper half."""

_TOO_SHORT, _TOO_LONG = 0.9, 4.0
"""Of the periods that fit. Up to four times as long costs a small fleet two seconds that few notice."""

_STEP_MS = 100
"""Milliseconds to which a printed setting is rounded up."""


class Misfit(enum.Enum):
    """How open periods do not fit a fleet and its server."""

    SHORT = "too short"
    """After an outage the fleet asks for more logins than the server can take."""
    LONG = "too long"
    """Environments stay away from a server that could take them."""


@dataclass(frozen=True)
class OpenPeriods:
    """The first and the longest open period, in seconds: BREAKER_RESET_TIMEOUT_MS and BREAKER_RESET_TIMEOUT_MAX_MS."""

    first: float
    longest: float

    @property
    def first_ms(self) -> int:
        """Milliseconds, rounded up to a tenth of a second."""
        return _round_up(self.first)

    @property
    def longest_ms(self) -> int:
        """Milliseconds, rounded up to a tenth of a second."""
        return _round_up(self.longest)

    def trial_share(self, environments: int, capacity: float) -> float:
        """What the fleet asks of the server in a long outage, as a share of the `capacity` logins a second it can take.

        At a closed port each of these costs the server nothing.
        """
        return environments / (_MEAN * self.longest) / capacity

    def capacity_needed(self, environments: int) -> float:
        """The logins a second from which on these periods are not too short for that many environments."""
        return environments * _TOO_SHORT * max(4 / 3 / self.first, 4 / self.longest)

    def misfit(self, environments: int, capacity: float) -> Misfit | None:
        """How they do not fit that many environments before a server that takes `capacity` logins a second."""
        fitted = open_periods(environments, capacity)
        if self.first < _TOO_SHORT * fitted.first or self.longest < _TOO_SHORT * fitted.longest:
            return Misfit.SHORT
        if self.first > _TOO_LONG * fitted.first or self.longest > _TOO_LONG * fitted.longest:
            return Misfit.LONG
        return None


def logins_per_second(vcpu: float, *, iam: bool = False) -> float:
    """C, the logins a second that a server with `vcpu` vCPUs can take."""
    capacity = LOGINS_PER_VCPU * vcpu
    return min(capacity, IAM_LOGINS) if iam else capacity


def open_periods(environments: int, capacity: float) -> OpenPeriods:
    """The periods that fit `environments` before a server that takes `capacity` logins a second.

    A first round of trials then asks for about `capacity` logins a second, and later ones for a third of it.
    """
    turn = environments / capacity
    return OpenPeriods(max(_FIRST_MIN, 4 / 3 * turn), max(_LONGEST_MIN, 4 * turn))


def _round_up(seconds: float) -> int:
    # to a millisecond first: 0.5 s must not become 600 ms because of a float's last digit
    return math.ceil(round(seconds * 1000) / _STEP_MS) * _STEP_MS
