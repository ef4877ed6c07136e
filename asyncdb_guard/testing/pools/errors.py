"""What the pools for tests raise."""

from __future__ import annotations

from asyncdb_guard.errors import GuardError


class RolledBackError(GuardError):
    """A rolled-back pool can't do what it was asked for: what is asked cannot happen inside of its transaction."""


class BorrowLeftOpenError(GuardError):
    """A test has ended, and a connection that it borrowed was not returned. Says where it was borrowed."""

    def __init__(self, places: list[str]) -> None:
        self.places = places
        """Where each of them was borrowed, as "file:line in function"."""
        were = "A connection was" if len(places) == 1 else f"{len(places)} connections were"
        super().__init__(
            f"{were} not returned before the test ended. Borrowed at: {', '.join(places)}. Use"
            " `async with pool.acquire()`, and wait for the tasks that borrow."
        )
