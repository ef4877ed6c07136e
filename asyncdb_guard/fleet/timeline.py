"""The simulation's clock: what happens next, and when. A heap of its own, as 100,000 environments need a fast one."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Timeline:
    """Runs what was planned, in order of time; lives as long as one simulation."""

    __slots__ = ("_planned", "_queue", "now")

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self.now = 0.0
        """Seconds since the outage began."""

    def at(self, when: float, do: Callable[..., None], *arguments: Any) -> None:
        """Plan `do(*arguments)`. What is planned for the same instant happens in the order of planning."""
        self._planned += 1
        heappush(self._queue, (when, self._planned, do, arguments))

    def run(self, end: float) -> None:
        """Go on until nothing is planned before `end`."""
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, _, do, arguments = heappop(queue)
            do(*arguments)
        self.now = end
