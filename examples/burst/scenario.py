"""The load on the fleet: how many people, how fast, and when the database goes down. The same for both runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

PoolName: TypeAlias = Literal["plain", "guarded"]

FLEET, BYSTANDER = "app", "reports"
"""Two ordinary roles. Connections are reserved for superusers, not for these."""
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
"""The number of sessions that asyncpg.create_pool() opens at once by default."""
RESERVED_FOR_SUPERUSERS = 3
"""PostgreSQL's default: ordinary roles are refused when no more than this many connections are free."""
TRIES = 3
"""Cognito calls a trigger up to three times before it gives up."""
TRY_SECONDS = 5.0
"""Cognito waits this long for an answer, which cannot be configured."""
RETRY_PAUSE = 0.5
"""Seconds between two attempts. Cognito's own pause is not documented."""
TRANSACTION_SECONDS = 0.01
"""Seconds that the rest of a sign-up's transaction takes."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load that is fixed before it starts, so that the runs differ only in the pool. Times are in seconds."""

    processes: int = 48
    max_connections: int = 100
    seconds: float = 24.0
    """How long people keep arriving."""
    burst: int = 10
    """Sign-ups that reach every process at the start."""
    rate: float = 2.0
    """Further sign-ups per second and process."""

    @property
    def outage_after(self) -> float:
        """When the database is stopped."""
        return 0.35 * self.seconds

    @property
    def outage(self) -> float:
        """How long it stays down."""
        return min(4.0, self.seconds / 6)

    @property
    def arrivals(self) -> list[float]:
        """When sign-ups reach one process."""
        steady = int(self.rate * self.seconds)
        return [0.0] * self.burst + [number / self.rate for number in range(1, steady + 1)]

    @property
    def plain_demand(self) -> int:
        """The number of sessions that the plain fleet wants."""
        return self.processes * ASYNCPG_DEFAULT_POOL

    def fault(self) -> str | None:
        """Why this scenario would show nothing, with the remedy; None if it is fine."""
        observer = 1
        seats = self.max_connections - RESERVED_FOR_SUPERUSERS - observer
        if self.seconds < 3:
            return "--seconds must be at least 3, to leave time for the outage."
        if self.processes >= seats:
            return (
                f"--processes must be below {seats}: each guarded process needs one connection, and the bystander one."
            )
        if self.plain_demand <= seats:
            return (
                f"--processes {self.processes} cannot exhaust {self.max_connections} connections: "
                f"use at least {seats // ASYNCPG_DEFAULT_POOL + 1}, or a smaller --max-connections."
            )
        return None
