"""What happens to the fleet: how many people, how fast, and when the database goes away. The same for both runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

PoolName: TypeAlias = Literal["plain", "guarded"]

FLEET, BYSTANDER = "app", "reports"
"""Two ordinary roles. Superusers have reserved seats; these have none."""
SCHEMA = f"""
    CREATE ROLE {FLEET} LOGIN;
    CREATE ROLE {BYSTANDER} LOGIN;
    CREATE TABLE app_user (
        cognito_sub text PRIMARY KEY,
        email       text NOT NULL,
        role        text NOT NULL DEFAULT 'member',
        tenant_id   uuid NOT NULL DEFAULT gen_random_uuid()
    );
    GRANT SELECT, INSERT ON app_user TO {FLEET}, {BYSTANDER};
"""
ASYNCPG_DEFAULT_POOL = 10
"""asyncpg.create_pool() opens this many sessions at once when nobody says otherwise."""
RESERVED_FOR_SUPERUSERS = 3
"""PostgreSQL's own default: ordinary roles are turned away once no more than this many seats are free."""
TRIES = 3
"""Cognito calls a trigger up to three times before it gives up."""
TRY_SECONDS = 5.0
"""Cognito waits this long for an answer. Nobody can change that."""
RETRY_PAUSE = 0.5
"""Between two of them. How long Cognito really pauses is not documented."""
TRANSACTION_SECONDS = 0.01
"""What the rest of a sign-up's transaction takes."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load, fixed before it starts, so that only the pool differs between two runs. Times in seconds."""

    processes: int = 48
    max_connections: int = 100
    seconds: float = 24.0
    """For how long people keep arriving."""
    burst: int = 10
    """Sign-ups that reach every process in the first instant."""
    rate: float = 2.0
    """Further sign-ups a second and process."""

    @property
    def outage_after(self) -> float:
        """When the database is stopped."""
        return 0.35 * self.seconds

    @property
    def outage(self) -> float:
        """How long it stays away."""
        return min(4.0, self.seconds / 6)

    @property
    def arrivals(self) -> list[float]:
        """When people reach one process."""
        steady = int(self.rate * self.seconds)
        return [0.0] * self.burst + [number / self.rate for number in range(1, steady + 1)]

    @property
    def plain_demand(self) -> int:
        """The sessions that the plain fleet wants."""
        return self.processes * ASYNCPG_DEFAULT_POOL

    def fault(self) -> str | None:
        """Why this scenario would show nothing, in one sentence with its remedy; None if it is a good one."""
        observer = 1
        seats = self.max_connections - RESERVED_FOR_SUPERUSERS - observer
        if self.seconds < 3:
            return "--seconds must be at least 3: less leaves no room for the outage."
        if self.processes >= seats:
            return f"--processes must be below {seats}: a guarded fleet needs one seat each, and the bystander one."
        if self.plain_demand <= seats:
            return (
                f"--processes {self.processes} can't exhaust {self.max_connections} connections: "
                f"give at least {seats // ASYNCPG_DEFAULT_POOL + 1}, or a smaller --max-connections."
            )
        return None
