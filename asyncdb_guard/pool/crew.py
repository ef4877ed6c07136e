"""The tasks of one pool on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Crew:
    """Starts tasks and holds them, as a loop alone does not; lives as long as its event loop."""

    __slots__ = ("_loop", "_tasks")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task of its own."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, timeout: float) -> None:
        """Wait for the tasks that run now, at most `timeout` seconds."""
        if self._tasks and timeout > 0:
            await asyncio.wait(self._tasks, timeout=timeout)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()
