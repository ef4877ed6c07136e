"""The load on the fleet: how many people, how fast, and when the database goes down. The same for all runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

PoolName: TypeAlias = Literal["plain", "guarded", "fleet"]
"""asyncpg's pool; ours; and ours with all that a fleet has which is larger than its server."""
POOLS: tuple[PoolName, ...] = ("plain", "guarded", "fleet")

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
TOO_MANY = 1.5
"""Environments of the third run, for each seat of the server."""
SEATS_FOR_OTHERS = 8
"""What the role's limit leaves to everybody else in the third run."""
LOGINS_PER_SECOND = 400.0
"""What a machine with two cores can take."""
IDLE_MS = 1000
"""IDLE_TIMEOUT_MS of the third run: an environment that the burst has started, and that rests after it, makes room."""
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
    seconds: float = 20.0
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
        return min(4.0, self.seconds / 5)

    @property
    def arrivals(self) -> list[float]:
        """When sign-ups reach one process."""
        steady = int(self.rate * self.seconds)
        return [0.0] * self.burst + [number / self.rate for number in range(1, steady + 1)]

    @property
    def seats(self) -> int:
        """What is left to ordinary roles, beside the superuser who observes."""
        return self.max_connections - RESERVED_FOR_SUPERUSERS - 1

    @property
    def role_limit(self) -> int:
        """CONNECTION LIMIT of the fleet's role in the third run."""
        return max(self.seats - SEATS_FOR_OTHERS, self.seats // 2)

    def environments_per_process(self, pool: PoolName) -> int:
        """Pools of one process, each with its own circuit breaker, like as many environments."""
        return math.ceil(TOO_MANY * self.seats / self.processes) if pool == "fleet" else 1

    def environments(self, pool: PoolName) -> int:
        """Environments of the whole fleet."""
        return self.processes * self.environments_per_process(pool)

    @property
    def plain_demand(self) -> int:
        """The number of sessions that the plain fleet wants."""
        return self.processes * ASYNCPG_DEFAULT_POOL

    def fault(self) -> str | None:
        """Why this scenario would show nothing, with the remedy; None if it is fine."""
        seats = self.seats
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
