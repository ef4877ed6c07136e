"""Ctrl-C and SIGTERM: the first one ends the demo; later ones do not interrupt the cleanup."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Interruption:
    """Turns the first signal within the block into a KeyboardInterrupt, and ignores later ones.

    Use it in the main thread. Run event loops with `run`: there the signal becomes a cancellation, which arrives at an
    `await` and never in the middle of asyncio's own work.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._happened = False
        self._job: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._interrupt) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interruption the process is about to exit, so the handlers stay.
        if not self._happened:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Like `asyncio.run`. Raises KeyboardInterrupt once the interrupted job has cleaned up."""

        async def known() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._job = asyncio.get_running_loop(), task
            try:
                return await job
            finally:
                self._job = None

        try:
            result = asyncio.run(known())
        except asyncio.CancelledError:
            if not self._happened:
                raise
        else:
            if not self._happened:
                return result
        raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        if self._happened:
            return
        self._happened = True
        if self._job is None:
            raise KeyboardInterrupt
        loop, task = self._job
        loop.call_soon_threadsafe(task.cancel)
