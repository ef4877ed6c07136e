"""The one file that knows the Lambda runtime: a process with one event loop, which may be frozen, forked or ended.

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
import time
from collections.abc import Callable, Coroutine
from types import CodeType
from typing import Any, NoReturn, ParamSpec, TypeVar

from asyncdb_guard.connect.sockets import forget_task
from asyncdb_guard.events import logger
from asyncdb_guard.failures import raised_by_driver
from asyncdb_guard.pool.registry import open_pools
from asyncdb_guard.redaction import describe

P = ParamSpec("P")
R = TypeVar("R")

_DISCONNECT_TIMEOUT = 0.2
"""Seconds to close the sessions before the process exits or a snapshot is taken."""

_MACHINERY = frozenset({"asyncio", "_asyncio", "asyncpg", "asyncdb_guard", "uvloop"})
"""Packages whose callbacks wake tasks up: if one fails, the task that it should have woken waits forever."""

_WATCH_INTERVAL = 0.5
"""Seconds between two checks that a call has not lost its wake-up."""

_CANCEL_TIMEOUT = 1.0
"""Seconds that a call gets to end after an error escaped it, before its event loop is replaced."""

_SETTLE_TIMEOUT = 0.1
"""Seconds that a call waits, at its end, for the statements that it interrupted to end on the server."""

_EXIT_TIMEOUT = 0.28
"""Seconds after SIGTERM at which the process exits, whatever is still running. Lambda sends SIGKILL after 0.3."""


class Process:
    """This process's event loop and its end, shared by all handlers. A forked child starts with a new loop."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._inherited: list[asyncio.Runner] = []
        self._left_behind: list[asyncio.Task[Any]] = []
        self._prepared = False
        self._guards_sigterm = False
        self._former: Any = None
        self._ending = False

    @property
    def initialising(self) -> bool:
        """Whether Lambda is initialising this environment for an invocation, not for a snapshot."""
        return _in_lambda() and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start"

    def prepare(self) -> None:
        """Register, once, for SIGTERM, the interpreter's exit, forks and snapshots."""
        self._guard_sigterm()
        if self._prepared:
            return
        self._prepared = True
        atexit.register(self._close)
        os.register_at_fork(after_in_child=self._start_afresh)
        with contextlib.suppress(ImportError):  # only Lambda's own Python runtimes include it
            # nothing to do after a restore: sessions, credentials, time and randomness are all obtained when needed
            importlib.import_module("snapshot_restore_py").register_before_snapshot(self._disconnect)

    def run(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[R | None, BaseException | None]:
        """Run a coroutine function on the process's loop; return its result, or the error that escaped it."""

        outcomes: list[tuple[R | None, BaseException | None]] = []

        async def call() -> None:
            # not the task's own result: asyncio's frames keep the task, and an error would keep those frames
            try:
                outcomes.append((await function(*args, **kwargs), None))
            except BaseException as raised:
                outcomes.append((None, raised))

        loop = self._idle_loop()
        # not Runner.run(): it runs all calls in one context, so that each would see the previous call's variables
        task = loop.create_task(call())
        watch = loop.call_later(_WATCH_INTERVAL, self._watch, loop, task, None)
        error: BaseException | None = None
        stray = False
        end: float | None = None
        while not task.done() and (end is None or time.monotonic() < end):
            try:
                if end is None:
                    loop.run_until_complete(task)
                else:
                    loop.run_until_complete(asyncio.wait({task}, timeout=end - time.monotonic()))
            except BaseException as escaped:
                # not always this task's: SystemExit or KeyboardInterrupt in another task stops the loop, too
                stray = stray or not task.done()
                error = escaped if error is None else error
            if self._ending:
                self._end()
            if error is not None:
                task.cancel()
                end = time.monotonic() + _CANCEL_TIMEOUT if end is None else end
        watch.cancel()
        if stray:
            self._replace_loop(loop, ended=task.done())
        else:
            self._settle(loop)
        try:
            result, raised = outcomes.pop() if outcomes else (None, None)
            if error is None:
                error = raised
            return (result, None) if error is None else (None, _without_frames_above(error, call.__code__))
        finally:
            error = raised = None  # the error's traceback holds this frame

    def _replace_loop(self, loop: asyncio.AbstractEventLoop, *, ended: bool) -> None:
        """Replace an event loop that raised an exception which was not its task's: a wake-up may be lost."""
        if not ended:
            logger.error(
                "A cancelled call did not end within %g s, so its event loop is replaced. Do not suppress"
                " CancelledError, and keep `finally` blocks short.",
                _CANCEL_TIMEOUT,
            )
        for pool in open_pools():
            pool.abandon()
        for task in asyncio.all_tasks(loop):
            forget_task(task)
            # kept for good: what suppresses a cancellation suppresses GeneratorExit as well, and would go on in the
            # thread that collects it
            self._left_behind.append(task)
        self._runner = None
        with contextlib.suppress(Exception):
            loop.close()

    def _watch(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], seen: object) -> None:
        """Stop the loop if its call has lost its wake-up, which an exception in a signal handler can cause."""
        waits_for: Any = getattr(task, "_fut_waiter", None)
        missed = waits_for if waits_for is not None and waits_for.done() else None
        if task.done() or (missed is not None and missed is seen):
            loop.stop()
        else:
            loop.call_later(_WATCH_INTERVAL, self._watch, loop, task, missed)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log as asyncio does, and stop the loop if an exception, such as a signal handler's, cost it a wake-up."""
        loop.default_exception_handler(context)
        error = context.get("exception")
        callback = getattr(context.get("handle"), "_callback", None)
        owner = type(getattr(callback, "__self__", callback)).__module__.partition(".")[0]
        if error is not None and (owner in _MACHINERY or "protocol" in context) and not raised_by_driver(error):
            loop.stop()

    def _idle_loop(self) -> asyncio.AbstractEventLoop:
        if _loop_is_running() or (self._runner and self._runner.get_loop().is_running()):
            raise RuntimeError(
                "A Lambda handler runs its own event loop, and one is already running here. In async code, await the "
                "coroutine function instead, which is the handler's __wrapped__."
            )
        if self._runner is None:
            self._guard_sigterm()
            # with a factory, Runner leaves the thread's current loop alone; a loop policy (uvloop's) still applies
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._runner.get_loop().set_exception_handler(self._on_loop_error)
        return self._runner.get_loop()

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Before Lambda freezes the process, wait until the server has ended interrupted statements."""
        for pool in open_pools():
            if pool.interrupted:
                with contextlib.suppress(Exception):
                    loop.run_until_complete(pool.settle(_SETTLE_TIMEOUT))

    def _disconnect(self) -> None:
        self.run(_end_sessions)

    def _close(self) -> None:
        if self._runner is not None:
            self._disconnect()
            # at exit, Python 3.12 starts no thread to wait for the loop's executor; the loop is closed all the same
            with contextlib.suppress(RuntimeError):
                self._runner.close()

    def _start_afresh(self) -> None:
        """In a forked child: leave the parent's loop alone and restore the handler of SIGTERM."""
        if self._runner is not None:
            # kept for good: its finaliser would remove the wake-up socket from the epoll that the parent still uses
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
        # in case a handler blocks the loop
        signal.signal(signal.SIGALRM, self._exit)
        signal.setitimer(signal.ITIMER_REAL, _EXIT_TIMEOUT)
        if self._runner is None:
            self._exit()
        loop = self._runner.get_loop()
        if not loop.is_running():
            self._end()
        self._ending = True
        # unless the call ends first
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
            logger.error("The previous handler of SIGTERM failed: %s", describe(error))
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            # sys.exit() would wait for the thread in which awslambdaric polls, on Python 3.13 forever
            os._exit(0)


def _without_frames_above(error: BaseException, code: CodeType) -> BaseException:
    """Cut the frames that ran the call off the traceback: asyncio's hold the task, and the task holds the error.

    Only the garbage collector would end that, and with it whatever the call had in its hands, such as a connection.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)


def _in_lambda() -> bool:
    return "AWS_LAMBDA_RUNTIME_API" in os.environ


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _end_sessions() -> None:
    """Close the server sessions of all pools, which open new ones on demand."""
    ends = (pool.disconnect(_DISCONNECT_TIMEOUT) for pool in open_pools())
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            logger.warning("A pool's sessions could not be closed: %s", describe(outcome))


process = Process()
"""The only instance. Handlers that use one pool must share a loop, so it belongs to no handler."""
