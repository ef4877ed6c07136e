"""Three who watch a run from outside: the observer, the bystander, and the counter at the closed door."""

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
"""What asyncpg raises when a server is full, goes away or is away."""
Clock = Callable[[], float]
"""Seconds since the burst began."""


async def observe(server: Cluster, clock: Clock, up: asyncio.Event, samples: list[Sample]) -> None:
    """Count the fleet's sessions, as a superuser, whom a full server still lets in. An absent server has none."""
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
    """Be the bystander: connect, ask, leave, again and again, as any other service of the same database does.

    It rests while the database is away, so that every attempt counted there is the fleet's.
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


class ClosedDoor:
    """Stands at the database's port while the database is away: counts who knocks, and turns them away."""

    def __init__(self) -> None:
        self.attempts = 0

    @classmethod
    @asynccontextmanager
    async def at(cls, host: str, port: int) -> AsyncGenerator[ClosedDoor, None]:
        """Stand at `port`, which the stopped server has just left, until the block ends."""
        door = cls()
        with socket.create_server((host, port), backlog=1024) as listener:
            # no asyncio.Server: CPython 3.13.0's prints a traceback if it is closed in the moment of an accept
            listener.setblocking(False)
            standing = asyncio.create_task(door._turn_away(listener))
            try:
                yield door
            finally:
                standing.cancel()
                await asyncio.wait({standing})

    async def _turn_away(self, listener: socket.socket) -> None:
        while True:
            caller, _ = await asyncio.get_running_loop().sock_accept(listener)
            with caller:
                self.attempts += 1
                # A reset, as from a host whose server is gone, and no TIME_WAIT that could keep the port.
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
