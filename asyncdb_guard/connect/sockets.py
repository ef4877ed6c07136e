"""What is done below asyncpg: look at a connection's socket, and end a connection whose event loop is gone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import socket
from collections.abc import Callable
from typing import Any


def socket_probe(descriptor: int | None) -> Callable[[], object]:
    """Return a function whose result is true if the socket has something to read or is hung up.

    It costs about a microsecond. Without a descriptor or poll(2) it always says yes: then each borrow pings.
    """
    if descriptor is None or not hasattr(select, "poll"):
        return lambda: True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLPRI)  # POLLERR, POLLHUP and POLLNVAL come unasked
    return functools.partial(poller.poll, 0)


def transport_of(task: asyncio.Task[Any]) -> Any:
    """Return the transport of a connect that `task` has under way, or None if it has not opened one yet.

    asyncpg hands it out only when the login is over; until then it is a variable of a suspended coroutine
    (asyncpg/connect_utils.py: `tr` in `__connect_addr` and `_create_ssl_connection`).
    """
    transport = None
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        transport = frame.f_locals.get("tr", transport)
        coroutine = coroutine.cr_await
    return transport


def half_close(transport: Any) -> socket.socket | None:
    """Tell the server that this client has left. Return a socket for `wait_server_closed`, None if there is none."""
    with contextlib.suppress(OSError, AttributeError):  # no transport, closed already, or no socket to be had
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
    """Close a connection without its event loop, which is closed or is not ours to run.

    Return a socket for `wait_server_closed`, or None if there is nothing to wait for.
    """
    lingering = half_close(transport)
    with contextlib.suppress(RuntimeError):  # the loop is closed
        transport.pause_reading()
    drop(transport)
    return lingering


def drop(transport: Any) -> None:
    """Close this process's descriptor of a connection, with no help from the event loop and no word to the server.

    asyncio/selector_events.py: `_call_connection_lost` is what a loop would run next; where it is missing (uvloop),
    the socket is shut down, and the loop's own end does the rest.
    """
    tls = getattr(transport, "_ssl_protocol", None)
    with contextlib.suppress(RuntimeError, AttributeError):
        if tls is not None:
            transport._closed = True
            transport = tls._transport
        # a later socket may get the same descriptor: the loop must not take this transport for its owner
        transport._closing = True
        transport._conn_lost = 1  # a read event that the loop has queued already is ignored
        transport._call_connection_lost(None)


def forget_task(task: asyncio.Task[None]) -> None:
    """Let go of a task whose event loop will never run it again, without asyncio's complaints about that."""
    bare: Any = task
    bare._log_destroy_pending = False
    with contextlib.suppress(RuntimeError, AttributeError):  # the loop is closed; the task waits for nothing
        bare._fut_waiter.cancel()


async def wait_server_closed(lingering: socket.socket, timeout: float) -> None:
    """Wait until the server has closed its side of a lingering socket, for at most `timeout` seconds."""
    with lingering, contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(timeout):
            while await asyncio.get_running_loop().sock_recv(lingering, 4096):
                pass
