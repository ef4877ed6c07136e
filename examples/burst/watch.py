"""Watches a run from outside: the observer, the bystander, and the counter of connection attempts."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import asyncpg

from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from examples.burst.measurements import Sample, Visit
from examples.burst.scenario import FLEET

OBSERVE_EVERY = 0.05
CONNECT_EVERY = 0.05
CONNECT_SECONDS = 2.0
UNAVAILABLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when a server is full, goes down or is down."""
Clock = Callable[[], float]
"""Seconds since the burst began."""


async def observe(server: Cluster, clock: Clock, up: asyncio.Event, samples: list[Sample]) -> None:
    """Count the fleet's sessions, as a superuser, whom a full server still accepts. A stopped server has none."""
    observer = Observer(server)
    try:
        while True:
            try:
                sessions = await observer.count(user=FLEET) if up.is_set() else 0
            except UNAVAILABLE:
                sessions = 0
            samples.append(Sample(clock(), sessions))
            await asyncio.sleep(OBSERVE_EVERY)
    finally:
        await observer.close()


async def visit(url: str, clock: Clock, up: asyncio.Event, visits: list[Visit]) -> None:
    """Be the bystander: connect, run a query and disconnect, again and again, as another client of the database.

    It pauses while the database is down, so that every attempt counted then is the fleet's.
    """
    while True:
        await up.wait()
        at = clock()
        try:
            conn = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
            try:
                await conn.fetchval("SELECT count(*) FROM app_user")
                await conn.close(timeout=CONNECT_SECONDS)
            finally:
                conn.terminate()
            visits.append(Visit(at, None))
        except UNAVAILABLE as error:
            if up.is_set():
                visits.append(Visit(at, type(error).__name__))
        await asyncio.sleep(CONNECT_EVERY)


class AttemptCounter:
    """Listens on the database's port while the database is down; counts each connection and resets it."""

    def __init__(self) -> None:
        self.attempts = 0

    @classmethod
    @asynccontextmanager
    async def at(cls, host: str, port: int) -> AsyncGenerator[AttemptCounter, None]:
        """Listen on `port`, which the stopped server has just released, until the block ends."""
        counter = cls()
        with socket.create_server((host, port), backlog=1024) as listener:
            # not an asyncio.Server: CPython 3.13.0's prints a traceback if it is closed during an accept
            listener.setblocking(False)
            counting = asyncio.create_task(counter._reset_all(listener))
            try:
                yield counter
            finally:
                counting.cancel()
                await asyncio.wait({counting})

    async def _reset_all(self, listener: socket.socket) -> None:
        while True:
            caller, _ = await asyncio.get_running_loop().sock_accept(listener)
            with caller:
                self.attempts += 1
                # A reset, as from a host whose server is down; it leaves no TIME_WAIT that would block the port.
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
