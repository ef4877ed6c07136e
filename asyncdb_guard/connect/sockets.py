"""Works below asyncpg: polls a connection's socket, and ends a connection whose event loop is gone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import socket
import traceback
from collections.abc import Callable
from typing import Any

import asyncpg

from asyncdb_guard.failures import chain_of


def socket_probe(descriptor: int | None) -> Callable[[], object]:
    """Return a function whose result is true if the socket is readable or has hung up.

    A call takes about a microsecond. Without a descriptor or poll(2) the result is always true, so each borrow pings.
    """
    if descriptor is None or not hasattr(select, "poll"):
        return lambda: True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLPRI)  # POLLERR, POLLHUP and POLLNVAL are always reported
    return functools.partial(poller.poll, 0)


def transport_of(task: asyncio.Task[Any]) -> Any:
    """Return the transport of the connect that `task` is making, or None if it has none yet.

    asyncpg exposes it only after the login; until then it is a local variable of a suspended coroutine
    (asyncpg/connect_utils.py: `tr` in `__connect_addr` and `_create_ssl_connection`; asyncio/base_events.py:
    `transport` in `_create_connection_transport`).
    """
    transport = None
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        name = "transport" if frame.f_code.co_name == "_create_connection_transport" else "tr"
        transport = frame.f_locals.get(name, transport)
        coroutine = coroutine.cr_await
    return transport


def give_up_tls(transport: Any) -> None:
    """Have a connect that waits for TLS end in silence.

    asyncpg/connect_utils.py: when the transport is closed, TLSUpgradeProto gives `on_data` an exception, which asyncio
    logs if nobody awaits `on_data` yet.
    """
    answer = getattr(transport.get_protocol(), "on_data", None) if transport is not None else None
    if answer is not None:
        answer.cancel()


def half_close(transport: Any) -> socket.socket | None:
    """Shut our side of a connection down. Return a socket for `wait_server_closed`, or None."""
    with contextlib.suppress(OSError, AttributeError):  # no transport, already closed, or no socket
        lingering = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        try:
            lingering.setblocking(False)
            lingering.shutdown(socket.SHUT_WR)
        except OSError:
            lingering.close()
        else:
            return lingering
    return None


def hang_up(transport: Any) -> socket.socket | None:
    """Close a connection without its event loop, which is closed or belongs to somebody else.

    Return a socket for `wait_server_closed`, or None.
    """
    lingering = half_close(transport)
    with contextlib.suppress(RuntimeError):  # the loop is closed
        transport.pause_reading()
    drop(transport)
    return lingering


def drop(transport: Any) -> None:
    """Close this process's descriptor of a connection without the event loop and without notifying the server.

    asyncio/selector_events.py: `_call_connection_lost` is what a loop would run next. uvloop has no such method; there
    the socket is already shut down, and closing the loop does the rest.
    """
    tls = getattr(transport, "_ssl_protocol", None)
    with contextlib.suppress(RuntimeError, AttributeError):
        if tls is not None:
            transport._closed = True
            transport = tls._transport
        # a later socket may get the same descriptor, and the loop must not take this transport for its owner
        transport._closing = True
        transport._conn_lost = 1  # makes the loop ignore a read event that is already queued
        transport._call_connection_lost(None)
        # a fork shares its parent's epoll, which may still report that there is something to read
        transport._read_ready_cb = _ignore


def _ignore() -> None:
    """Read nothing."""


def forget_task(task: asyncio.Task[None]) -> None:
    """Drop a task whose event loop will never run it again, without asyncio's warnings."""
    bare: Any = task
    bare._log_destroy_pending = False
    with contextlib.suppress(RuntimeError, AttributeError):  # the loop is closed, or the task waits for nothing
        bare._fut_waiter.cancel()


def is_due(task: asyncio.Task[Any]) -> bool:
    """Whether a suspended task waits for nothing any more, and runs in the loop's next round."""
    return _wake_up(task) is not None


def end_if_lost(task: asyncio.Task[Any]) -> None:
    """End a task that should run in the loop's next round and does not.

    An exception from a signal handler can cost a task its wake-up. Nothing else ends it then, and asyncio.run() waits
    for it in its end.
    """
    wake_up = _wake_up(task)
    if wake_up is not None:
        # the loop calls in the order in which it was asked to, so the task is first
        task.get_loop().call_soon(_end_if_still, task, wake_up)


def _wake_up(task: asyncio.Task[Any]) -> object:
    bare: Any = task
    waits_for = bare._fut_waiter
    if task.done() or (waits_for is not None and not waits_for.done()):
        return None
    return waits_for or bare.get_coro()


def _end_if_still(task: asyncio.Task[Any], wake_up: object) -> None:
    if _wake_up(task) is wake_up:
        coroutine: Any = task.get_coro()
        with contextlib.suppress(Exception):
            coroutine.close()
        as_future: Any = asyncio.Future
        as_future.cancel(task)  # not Task.cancel(), which leaves the rest to the next wake-up


def clear_variables(error: BaseException) -> None:
    """Empty the frames of a failed login's traceback: those of asyncpg hold the password."""
    for cause in chain_of(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            local: Any = frame.f_locals
            if isinstance(local.get("self"), asyncpg.Connection):
                local["self"]._aborted = True  # else its finaliser looks at what its constructor did not get to
        traceback.clear_frames(cause.__traceback__)


async def wait_server_closed(lingering: socket.socket, timeout: float) -> None:
    """Wait until the server has closed its side of a lingering socket, for at most `timeout` seconds."""
    with lingering, contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(timeout):
            while await asyncio.get_running_loop().sock_recv(lingering, 4096):
                pass
