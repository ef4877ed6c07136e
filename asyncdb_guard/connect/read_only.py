"""Sessions that lead to a read-only server, such as the former writer after a failover. Pure: no I/O, no clock."""

from __future__ import annotations

from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.events import logger

REPLACE_INTERVAL = 1.0
"""Seconds that a session rests on a read-only server, at least, if another such session was ended before it opened.

The name may lead to the old server for some seconds after a failover, or always to a replica, on which somebody writes
by mistake: neither may cost a connect for each statement.
"""


class ReadOnlySessions:
    """What is known of them; lives as long as its pool, over all event loops."""

    __slots__ = ("_found_at",)

    def __init__(self) -> None:
        self._found_at: Instant | None = None

    def worth_ending(self, opened_at: Instant, now: Instant) -> bool:
        """Whether another connect may lead elsewhere than the one at `opened_at`."""
        found_at = self._found_at
        return found_at is None or opened_at <= found_at or elapsed(found_at, now) >= REPLACE_INTERVAL

    def found(self, now: Instant) -> None:
        """A session turned out to be read-only and is ended. Says so once."""
        if self._found_at is None:
            logger.warning(
                "A write was refused because the server is read-only (SQLSTATE 25006), as the former writer is after a"
                " failover. The pool ends such sessions and connects again. If it goes on, let the database URL name"
                " the writer, not a replica; or look for default_transaction_read_only."
            )
        self._found_at = now
