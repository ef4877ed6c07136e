"""A connect in progress: who gets its error if it fails, and whether that counts. Pure: no I/O."""

from __future__ import annotations

import asyncio

from asyncdb_guard.clock import Instant, elapsed


class ConnectAttempt:
    """A connect in progress; lives until it has succeeded or failed."""

    __slots__ = ("alone", "late", "reported_at", "since", "task")

    task: asyncio.Task[None]

    def __init__(self, now: Instant, *, alone: bool) -> None:
        self.since = now
        self.alone = alone
        """Whether the pool has had no session since it began."""
        self.late = False
        """Whether it has been given up, and only holds its place until the server has let go."""
        self.reported_at: Instant | None = None
        """When a waiter whose time was over reported it last."""

    def fails_a_waiter(self, *, promising: bool) -> bool:
        """Decide who gets the error, now that it has failed: whoever has waited longest, or nobody.

        Nobody, while another connection or connect is promising: waiters can still get that one. Nobody either, if a
        waiter has reported this connect before; the others get a connect of their own.
        """
        return not promising and self.reported_at is None

    def counts_as_silent(self, waited: float, now: Instant, connect_timeout: float) -> bool:
        """Decide whether a waiter that gives up after `waited` seconds reports this connect as a failure.

        Half of CONNECT_TIMEOUT is enough to tell, for the waiter and for the connect alike, and one report counts for
        as long.
        """
        enough = connect_timeout / 2
        reported = self.reported_at is not None and elapsed(self.reported_at, now) < enough
        return not reported and min(waited, elapsed(self.since, now)) >= enough
