"""Connects in progress: how long they have lasted, and who was told that they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant


class Dial:
    """A connect by the current task, asked for under `permit`. It fails one caller only, however many wait for it."""

    __slots__ = ("blamed", "permit", "since", "task")

    def __init__(self, permit: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.permit = permit
        self.since: Instant = clock.now()
        self.blamed = False
        """Whether a caller whose time was up has reported it already."""


class Dials:
    """The connects in progress of one pool on one event loop."""

    __slots__ = ("_dials",)

    def __init__(self) -> None:
        self._dials: list[Dial] = []

    @property
    def oldest(self) -> Dial | None:
        """The one that has lasted longest."""
        return next(iter(self._dials), None)

    @contextmanager
    def track(self, dial: Dial) -> Generator[None, None, None]:
        """It is in progress for as long as the block lasts."""
        self._dials.append(dial)
        try:
            yield
        finally:
            self._dials.remove(dial)

    def cancel(self) -> None:
        """End them all: nothing shall dial behind an open circuit."""
        for dial in self._dials:
            dial.task.cancel()
