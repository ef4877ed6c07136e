"""What every store of a bulletin can do. Its calls block, and run in threads."""

from __future__ import annotations

from typing import Protocol

from asyncdb_guard.clock import Instant
from asyncdb_guard.news import News


class FleetStore(Protocol):
    """Holds the words of one database. Any error means that it is unavailable."""

    def look(self, at: Instant) -> News:
        """Return what it holds. Raises ValueError for what no environment can have told."""
        ...

    def tell_open(self, witness: str, life: float) -> None:
        """Keep for `life` seconds that `witness` has opened its circuit."""
        ...

    def tell_recovered(self, recovery: str) -> None:
        """A trial succeeded. If none did lately, `recovery` begins; nobody's circuit counts as open any more."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...
