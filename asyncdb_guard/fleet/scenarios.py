"""What happens to the server. Times are seconds; the outage begins at 0."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Reach(enum.Enum):
    """What a connect meets."""

    UP = "up"
    REFUSED = "refused"
    """Nothing listens: the kernel resets the connection, which costs the server nothing."""
    STARTING = "starting"
    """57P03, which costs the server more than half a login."""
    SILENT = "silent"
    """No answer until the client's own timeout."""


@dataclass(frozen=True)
class Scenario:
    """One outage."""

    name: str
    phases: tuple[tuple[float, Reach], ...]
    """How long, and what a connect meets meanwhile."""
    watched: float
    """Seconds for which the simulation goes on once the server is back."""
    sessions_hang: bool = False
    """The fleet's sessions died without a word, so that each costs a caller a timeout; else they were ended."""
    slots_per_environment: float | None = None
    """Slots of the server for each environment of the fleet, where the server is too small."""

    @property
    def seconds(self) -> float:
        """How long the outage lasts."""
        return sum(seconds for seconds, _ in self.phases)

    @property
    def starting(self) -> float:
        """Seconds of it in which the server answers 57P03."""
        return sum(seconds for seconds, reach in self.phases if reach is Reach.STARTING)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("restart", ((3.0, Reach.REFUSED), (1.0, Reach.STARTING)), watched=30.0),
        Scenario("60s", ((60.0, Reach.REFUSED),), watched=90.0),
        Scenario("failover", ((10.0, Reach.REFUSED), (40.0, Reach.SILENT), (10.0, Reach.STARTING)), watched=90.0),
        Scenario("blackhole", ((20.0, Reach.SILENT),), watched=60.0, sessions_hang=True),
        Scenario("full", (), watched=60.0, slots_per_environment=1 / 1.5),
    )
}
"""By name. `full` has no outage: everybody connects at 0, and 1.5 environments want each slot."""
