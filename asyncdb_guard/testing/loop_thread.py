"""An event loop in a thread of its own: it goes on while the test's loop is blocked, frozen or gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers of any thread, from `start()` to `stop()`."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, name: str) -> None:
        self.running = False
        """Whether it was started and not stopped."""
        self._name = name

    def start(self) -> None:
        """Begin, with a new event loop."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=self._name, daemon=True)
        self._thread.start()
        self.running = True

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine without waiting for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine and wait for its result. Raises TimeoutError after `timeout` seconds."""
        return self.submit(work).result(timeout)

    def stop(self) -> None:
        """Stop the loop and the thread. Tasks that still run are left where they are."""
        self.running = False
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, even where an event loop is running in this thread. It must end its own tasks."""
    thread = LoopThread("run_blocking")
    thread.start()
    try:
        return thread.run(work)
    finally:
        thread.run(thread.loop.shutdown_asyncgens())  # a pool ends its sessions then
        thread.stop()
