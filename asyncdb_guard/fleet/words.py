"""A model of the store in which a fleet tells itself of an outage. Time is an argument, by the store's own clock."""

from __future__ import annotations

import math

from asyncdb_guard.clock import Instant
from asyncdb_guard.news import LAST_LIFE, RECOVERY_LIFE, WITNESSES_MAX, News


class StoreModel:
    """What a Redis does with the words of one database; lives as long as one simulation. All times are seconds."""

    def __init__(self) -> None:
        self._last_at = self._since = -math.inf
        self._recoveries = 0
        self._witnesses: dict[object, float] = {}
        """Until when each counts."""

    def look(self, at: Instant, now: float) -> News:
        """What it says to somebody whose own clock says `at`."""
        last, since = now - self._last_at, now - self._since
        began = since <= RECOVERY_LIFE
        witnesses = sum(until > now for until in self._witnesses.values())
        return News(
            at,
            last if last <= LAST_LIFE else None,
            str(self._recoveries) if began else None,
            since if began else 0.0,
            witnesses,
        )

    def tell_open(self, witness: object, life: float, now: float) -> None:
        """`witness` has opened its circuit."""
        self._witnesses.pop(witness, None)
        self._witnesses[witness] = now + life
        while len(self._witnesses) > WITNESSES_MAX:
            del self._witnesses[next(iter(self._witnesses))]

    def tell_recovered(self, now: float) -> None:
        """A trial succeeded."""
        if now - self._last_at > LAST_LIFE:
            self._recoveries += 1
            self._since = now
        self._last_at = now
        self._witnesses.clear()
