"""Notifications between the connection that they come from and whoever reads them. No I/O."""

import asyncio
import contextlib
from collections import deque
from typing import NamedTuple, TypeAlias

_NOTES_MAX = 10_000
"""Notifications that wait for their reader; beyond that they are dropped, and the reader is told."""


# No dataclasses, as each adds half a millisecond to a cold start.
class Notification(NamedTuple):
    """One NOTIFY."""

    channel: str
    payload: str
    """An empty string if there is none."""
    pid: int
    """The process number of the session that sent it."""


class NotificationsMissed:
    """Notifications may have been missed before this point: query the database for what they would have announced."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NotificationsMissed)

    def __hash__(self) -> int:
        return hash(NotificationsMissed)

    def __repr__(self) -> str:
        return "NotificationsMissed()"


Note: TypeAlias = Notification | NotificationsMissed


class Feed:
    """What comes in, until it is read. asyncpg calls it, so it must not refer to the connection or to its reader."""

    __slots__ = ("__weakref__", "_arrived", "closed", "lost", "notes")

    def __init__(self) -> None:
        self.notes: deque[Note] = deque()
        self.lost = False
        """Whether the session has ended."""
        self.closed = False
        """Whether the pool has been closed."""
        self._arrived = asyncio.Event()

    def hear(self, _connection: object, pid: int, channel: str, payload: object) -> None:
        """Called for each notification."""
        if len(self.notes) >= _NOTES_MAX:
            self.notes.clear()
            self.notes.append(NotificationsMissed())
        self.notes.append(Notification(channel, str(payload), pid))
        self._arrived.set()

    def lose(self, _connection: object) -> None:
        """Called when the session has ended."""
        self.lost = True
        self._arrived.set()

    def close(self) -> None:
        """Wake the reader up for good."""
        self.closed = True
        self._arrived.set()

    async def wait(self, timeout: float) -> bool:
        """Wait for anything since the last call, for at most `timeout` seconds; return whether there was something."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        happened = self._arrived.is_set()
        self._arrived.clear()
        return happened
