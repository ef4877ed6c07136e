"""What one schedule does, all of it drawn from its seed. Pure: no I/O, no clock."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Via = Literal["direct", "tls", "pgbouncer"]

LOUD = (
    "reset", "reset", "drop", "drop", "terminate", "terminate", "cancel", "refuse", "hang", "slow", "restart",
    "block", "disconnect", "quiet", "quiet",
)  # fmt: skip
"""Faults that the server notices."""

SILENT = ("silence", "silence", "deaf")
"""Faults that it does not: a session whose client vanished unseen lasts until the server's own timeouts."""


COVERING = (2, 4, 5, 7, 8, 9)
"""Seeds that between them cover each way to the server, pool size, reset and event loop, eager tasks, silent faults and
a crowd. A test says so."""


class Fault(NamedTuple):
    """One fault: how long it lasts, in seconds, and the pause after it."""

    name: str
    lasts: float
    pause: float


@dataclass(frozen=True)
class Plan:
    """The settings of one schedule; the same for the same seed on every machine."""

    seed: int
    via: Via
    pool_max: int
    session_reset: Literal["always", "never"]
    uvloop: bool
    eager: bool
    silent: bool
    fail_max: int
    borrowers: int

    @classmethod
    def of(cls, seed: int, via: Via | None = None) -> Plan:
        """Draw the plan of a seed; `via` overrides how the pool reaches the server."""
        chance = random.Random(seed)
        drawn = chance.choice(("direct", "direct", "tls", "pgbouncer"))
        return cls(
            seed=seed,
            pool_max=chance.choice((1, 2, 5)),
            session_reset=chance.choice(("always", "never")),
            uvloop=chance.random() < 0.3,
            eager=chance.random() < 0.4,
            # a pooler's own timeouts bound a client that vanished unseen, and the plain one here has none
            silent=chance.random() < 0.4 and (via or drawn) != "pgbouncer",
            fail_max=chance.choice((2, 5, 1000)),
            borrowers=chance.choice((3, 10, 40)),
            via=via or drawn,
        )

    def faults(self) -> Iterator[Fault]:
        """Every fault in turn, without an end."""
        chance = random.Random(self.seed + 1_000_000)
        names = LOUD + SILENT if self.silent else LOUD
        while True:
            yield Fault(chance.choice(names), chance.uniform(0.02, 0.3), chance.uniform(0.0, 0.5))

    def __str__(self) -> str:
        loop = "uvloop" if self.uvloop else "asyncio"
        kinds = "silent faults too" if self.silent else "loud faults"
        return (
            f"{self.via}, pool_max {self.pool_max}, session_reset {self.session_reset}, {loop}"
            f"{', eager tasks' if self.eager else ''}, {kinds}, {self.borrowers} borrowers"
        )
