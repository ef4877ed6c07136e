"""`recorded(pool)`: the events of a pool, to look at afterwards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from asyncdb_guard.events import Event
from asyncdb_guard.pool import GuardedPool


class Recording(list[Event]):
    """The events in their order; of the triggers, too, that use the pool."""

    @property
    def names(self) -> list[str]:
        """Their names, such as `connection_opened`."""
        return [event.name for event in self]


@contextmanager
def recorded(pool: GuardedPool) -> Generator[Recording]:
    """Record the pool's events for a `with` block; the list stays as it is afterwards."""
    recording = Recording()
    listener = recording.append
    pool.events.add(listener)
    try:
        yield recording
    finally:
        pool.events.remove(listener)
