"""One borrow, from the moment a connection is lent until it is handed on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from asyncdb_guard.clock import Instant
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.connect.pooled_connection import PooledConnection

_numbers = itertools.count(1)


class Lease:
    """The connection, what the borrower holds of it, and the permit to report with.

    It owns the connection's place for as long as the connection names it. A lease that is forgotten without a release,
    whatever tore that release, is collected and hands the connection to `reclaim(connection, number)`.
    """

    __slots__ = ("_reclaim", "connection", "lent", "number", "permit", "since", "timer")

    def __init__(
        self,
        connection: PooledConnection,
        permit: int,
        since: Instant,
        reclaim: Callable[[PooledConnection, int], None],
    ) -> None:
        self._reclaim = reclaim
        self.connection = connection
        self.number = connection.lease = next(_numbers)
        self.permit = permit
        self.since = since
        self.timer: asyncio.TimerHandle | None = None
        """For the warning that the block lasts long."""
        self.lent: LentConnection = connection.lend()

    def __del__(self) -> None:
        try:
            forgotten = self.connection.lease == self.number
        except AttributeError:  # an exception from outside has torn __init__
            return
        if forgotten:
            self.connection.holder = None
            self._reclaim(self.connection, self.number)
