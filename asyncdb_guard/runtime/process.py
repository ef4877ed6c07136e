"""The one file that knows the Lambda runtime: its process has one event loop, and ends, forks or is frozen.

Lambda calls handlers synchronously, catches only `Exception`, and runs nothing between two calls
(awslambdaric 4.2, bootstrap.py: `handle_event_request`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

from asyncdb_guard.events import logger
from asyncdb_guard.pool.registry import open_pools
from asyncdb_guard.redaction import describe

P = ParamSpec("P")
R = TypeVar("R")

_DISCONNECT_TIMEOUT = 0.2
"""Seconds for ending the sessions before the process ends or is frozen into a snapshot."""

_SETTLE_TIMEOUT = 0.1
"""Seconds for which a call waits until statements that it broke off have ended on the server."""

_LAST_MOMENT = 0.28
"""Seconds after SIGTERM at which the process ends, whatever still runs. Lambda sends SIGKILL after 0.3."""


class Process:
    """This process's event loop, and its end. One for all handlers; a forked child starts afresh."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._inherited: list[asyncio.Runner] = []
        self._prepared = False
        self._guards_sigterm = False
        self._former: Any = None
        self._ending = False

    @property
    def initialising(self) -> bool:
        """Whether Lambda is starting this environment for an invocation, and not for a snapshot."""
        return _in_lambda() and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start"

    def prepare(self) -> None:
        """Ask, once, to be told of SIGTERM, the interpreter's exit, forks and snapshots."""
        self._guard_sigterm()
        if self._prepared:
            return
        self._prepared = True
        atexit.register(self._close)
        os.register_at_fork(after_in_child=self._start_afresh)
        with contextlib.suppress(ImportError):  # only Lambda's own Python runtimes are sure to have it
            # nothing to do after the restore: sessions, credentials, clock and chance are all taken anew when needed
            importlib.import_module("snapshot_restore_py").register_before_snapshot(self._disconnect)

    def run(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[R | None, BaseException | None]:
        """Run a coroutine function on the process's loop; return its result, or whatever escaped it."""

        async def call() -> R:
            return await function(*args, **kwargs)  # here, so that whatever it does at once is told like the rest

        loop = self._idle_loop()
        # not Runner.run(): it gives all calls one and the same context, and so one call's variables to the next
        task = loop.create_task(call())
        error: BaseException | None = None
        while not task.done():
            try:
                loop.run_until_complete(task)
            except BaseException as escaped:
                # not always the task's own: SystemExit or KeyboardInterrupt in another one stops the loop under ours
                error = escaped if error is None else error
            if self._ending:
                self._end()
            if error is not None:
                task.cancel()
        self._settle(loop)
        return (task.result(), None) if error is None else (None, error)

    def _idle_loop(self) -> asyncio.AbstractEventLoop:
        if _loop_is_running() or (self._runner and self._runner.get_loop().is_running()):
            raise RuntimeError(
                "A Lambda handler needs the event loop for itself, and one is running here. From async code, await "
                "the coroutine function instead, which is the handler's __wrapped__."
            )
        if self._runner is None:
            self._guard_sigterm()
            # with a factory, Runner doesn't touch the thread's current loop; a loop policy (uvloop's) still counts
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        return self._runner.get_loop()

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Before Lambda freezes the process, let the server hear of statements that were broken off."""
        for pool in open_pools():
            if pool.interrupted:
                with contextlib.suppress(Exception):
                    loop.run_until_complete(pool.settle(_SETTLE_TIMEOUT))

    def _disconnect(self) -> None:
        self.run(_end_sessions)

    def _close(self) -> None:
        if self._runner is not None:
            self._disconnect()
            # Python 3.12 starts no thread so late, not even to wait for the loop's own; the loop is closed all the same
            with contextlib.suppress(RuntimeError):
                self._runner.close()

    def _start_afresh(self) -> None:
        """In a forked child: leave the parent's loop alone, and SIGTERM as it was."""
        if self._runner is not None:
            # kept for good: its finaliser would take the wake-up socket out of the epoll that the parent still uses
            self._inherited.append(self._runner)
            self._runner = None
        if self._guards_sigterm:
            signal.signal(signal.SIGTERM, self._former)
            self._guards_sigterm = False

    def _guard_sigterm(self) -> None:
        if self._guards_sigterm or not _in_lambda() or threading.current_thread() is not threading.main_thread():
            return
        self._guards_sigterm = True
        self._former = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # for a handler that blocks the loop
        signal.signal(signal.SIGALRM, self._exit)
        signal.setitimer(signal.ITIMER_REAL, _LAST_MOMENT)
        if self._runner is None:
            self._exit()
        loop = self._runner.get_loop()
        if not loop.is_running():
            self._end()
        self._ending = True
        # unless the call comes to its own end first
        loop.call_soon_threadsafe(lambda: self._ending and loop.stop())

    def _end(self) -> NoReturn:
        self._ending = False
        self._disconnect()
        self._exit()

    def _exit(self, *_: object) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            if callable(self._former):
                self._former(signal.SIGTERM, None)
        except SystemExit:
            pass
        except BaseException as error:
            logger.error("The former handler of SIGTERM failed with %s", describe(error))
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            # sys.exit() would wait for the thread in which awslambdaric polls: on Python 3.13 for ever
            os._exit(0)


def _in_lambda() -> bool:
    return "AWS_LAMBDA_RUNTIME_API" in os.environ


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _end_sessions() -> None:
    """End the server sessions of all pools; they open new ones when asked."""
    ends = (pool.disconnect(_DISCONNECT_TIMEOUT) for pool in open_pools())
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            logger.warning("A pool's sessions could not be ended: %s", describe(outcome))


process = Process()
"""The one of this process. Handlers over one pool must share the loop, so it belongs to no handler."""
