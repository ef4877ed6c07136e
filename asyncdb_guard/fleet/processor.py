"""Processors shared alike by all that run on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from asyncdb_guard.fleet.timeline import Timeline


class Job:
    """Some work of the server; lives until it is done or dropped."""

    __slots__ = ("arguments", "dropped", "then")

    def __init__(self, then: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.then = then
        self.arguments = arguments
        self.dropped = False


class Processor:
    """`cores` under processor sharing: n jobs get min(1, cores/n) of a core each; lives as long as one simulation.

    It counts in shares: the seconds of CPU that each job has got since the beginning. A job that starts at share s and
    needs c seconds is done at share s + c, whoever comes and goes meanwhile.
    """

    __slots__ = ("_cores", "_counted_at", "_jobs", "_running", "_share", "_started", "_timeline", "_wake_at")

    def __init__(self, timeline: Timeline, cores: float) -> None:
        self._timeline = timeline
        self._cores = cores
        self._share = 0.0
        self._counted_at = 0.0
        self._running = 0
        self._started = 0
        self._jobs: list[tuple[float, int, Job]] = []
        self._wake_at = math.inf

    def start(self, seconds: float, then: Callable[..., None], *arguments: Any) -> Job:
        """Begin a job of so many seconds of CPU; once it is done, `then(*arguments)`."""
        self._count()
        job = Job(then, arguments)
        self._started += 1
        self._running += 1
        heappush(self._jobs, (self._share + seconds, self._started, job))
        self._plan()
        return job

    def drop(self, job: Job) -> None:
        """End a job that nobody waits for any more."""
        self._count()
        job.dropped = True
        self._running -= 1
        self._plan()

    def resize(self, cores: float) -> None:
        """Go on with so many cores."""
        self._count()
        self._cores = cores
        self._plan()

    def _count(self) -> None:
        now = self._timeline.now
        if self._running:
            self._share += (now - self._counted_at) * min(1.0, self._cores / self._running)
        self._counted_at = now

    def _plan(self) -> None:
        """Wake when the next job is done. An earlier wake that is planned already does as well: it plans anew."""
        while self._jobs and self._jobs[0][2].dropped:
            heappop(self._jobs)
        if self._jobs:
            left = max(self._jobs[0][0] - self._share, 0.0)
            done_at = self._timeline.now + left / min(1.0, self._cores / self._running)
            if done_at < self._wake_at:
                self._wake_at = done_at
                self._timeline.at(done_at, self._wake, done_at)

    def _wake(self, planned: float) -> None:
        if planned != self._wake_at:
            return
        self._wake_at = math.inf
        self._count()
        done: list[Job] = []
        while self._jobs and (self._jobs[0][2].dropped or self._jobs[0][0] <= self._share + 1e-9):
            job = heappop(self._jobs)[2]
            if not job.dropped:
                self._running -= 1
                done.append(job)
        self._plan()
        for job in done:
            job.then(*job.arguments)
