"""Do the sessions that a fleet may hold fit the server? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ServerFacts:
    """What the server says of its slots, and of the fleet's role."""

    max_connections: int
    reserved: int
    """Slots that ordinary roles never get."""
    role: str
    role_limit: int | None
    """CONNECTION LIMIT of the role; None is no limit."""
    role_is_superuser: bool
    database_limit: int | None
    """CONNECTION LIMIT of the database; None is no limit."""
    others: int
    """Sessions of other roles, now."""
    others_limit: int | None
    """What CONNECTION LIMIT leaves to all other roles together; None where one of them has none."""

    @property
    def slots(self) -> int:
        """What ordinary roles share."""
        return self.max_connections - self.reserved

    @property
    def others_at_most(self) -> int:
        """Slots to leave to other roles, as far as the server can tell."""
        return self.others if self.others_limit is None else max(self.others_limit, self.others)

    @property
    def ceiling(self) -> tuple[int, str]:
        """The sessions that the fleet can hold at most, and what bounds them."""
        bounds = [(self.slots, "max_connections")]
        if not self.role_is_superuser:
            if self.role_limit is not None:
                bounds.append((self.role_limit, "the role's CONNECTION LIMIT"))
            if self.database_limit is not None:
                bounds.append((self.database_limit, "the database's CONNECTION LIMIT"))
        return min(bounds)


@dataclass(frozen=True)
class Demand:
    """The environments that may run at the same time, and what each holds."""

    functions: Mapping[str, int]
    """Environments of each Lambda function."""
    processes: int = 1
    """Processes of each environment; each has a pool of its own."""
    pool_max: int = 1

    @cached_property
    def pools(self) -> int:
        """Pools, and so circuit breakers."""
        return sum(self.functions.values()) * self.processes

    @cached_property
    def sessions(self) -> int:
        """Sessions at most."""
        return self.pools * self.pool_max


@dataclass(frozen=True)
class Budget:
    """How the demand and the server's slots go together. `others`: slots to leave to other roles."""

    facts: ServerFacts
    demand: Demand
    others: int

    @property
    def limit(self) -> int:
        """The CONNECTION LIMIT that suits the role: what it needs, and never what others need."""
        return max(0, min(self.demand.sessions, self.facts.slots - self.others))

    @property
    def fits(self) -> bool:
        """Whether every environment gets its session."""
        return self.demand.sessions <= self.limit

    @property
    def refused_share(self) -> float:
        """The share of the sessions that the server can never give."""
        return 1 - self.limit / self.demand.sessions

    @property
    def reserved_concurrency(self) -> dict[str, int]:
        """What to set for each function, so that no more environments run than there are slots for."""
        share = self.limit / self.demand.sessions
        return {name: int(environments * share) for name, environments in self.demand.functions.items()}

    @property
    def obstacles(self) -> list[str]:
        """Limits on the server that are lower than the demand, one sentence each with its remedy."""
        facts, sessions = self.facts, self.demand.sessions
        found: list[str] = []
        if facts.role_is_superuser:
            found.append("The role is a superuser, and no limit binds those: log in as an ordinary role.")
        elif facts.role_limit is not None and facts.role_limit < sessions:
            found.append(f"The role's CONNECTION LIMIT of {facts.role_limit:,} is too low: raise it.")
        if facts.database_limit is not None and facts.database_limit < sessions + self.others:
            found.append(f"The database's CONNECTION LIMIT of {facts.database_limit:,} is too low: raise it.")
        return found
