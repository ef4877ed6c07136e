"""Sessions on a read-only server, such as the former writer after a failover. Pure: no I/O, no clock."""

from __future__ import annotations

from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.events import logger

REPLACE_INTERVAL = 1.0
"""Seconds for which a session on a read-only server is kept, at least, if it was opened after another one was closed.

After a failover the name may lead to the old server for some seconds; or it may always lead to a replica, to which
somebody writes by mistake. Neither may cost a connect for each statement.
"""


class ReadOnlySessions:
    """What is known about them; lives as long as its pool, over all event loops."""

    __slots__ = ("_found_at",)

    def __init__(self) -> None:
        self._found_at: Instant | None = None

    def worth_ending(self, opened_at: Instant, now: Instant) -> bool:
        """Whether another connect may lead elsewhere than the one at `opened_at`."""
        found_at = self._found_at
        return found_at is None or opened_at <= found_at or elapsed(found_at, now) >= REPLACE_INTERVAL

    def found(self, now: Instant) -> None:
        """Note that a session is read-only and will be closed. Logs a warning the first time."""
        if self._found_at is None:
            logger.warning(
                "A write was refused because the server is read-only (SQLSTATE 25006), as the former writer is after a"
                " failover. The pool closes such sessions and connects again. If this continues, make the database"
                " URL name the writer, not a replica, or check default_transaction_read_only."
            )
        self._found_at = now
