"""A TCP proxy in front of a PostgreSQL: it counts, it reads along, and it fails on command.

It runs in a thread of its own, so it also works while the test's loop is blocked, frozen or gone.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Self, TypeVar

from examples.harness.ports import LOOPBACK, free_port
from tests.support.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.link import Side

T = TypeVar("T")


class TcpProxy:
    """Use as `async with` or `with`. Everything may be read and set from any thread at any time."""

    host = LOOPBACK

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.port = 0

        self.latency = 0.0
        """Seconds added each way."""
        self.deaf = False
        """The path is dead: nothing passes any more, in neither direction, not even the end of a connection, and
        sockets stay open. A connection that lost bytes stays deaf when this becomes False again."""
        self.hang = False
        """New connections are accepted and never answered; the server never hears of them."""
        self.refuse = False
        """New connections are accepted and reset at once."""

        self.accepted = 0
        """Connections so far, refused and hanging ones included."""
        self.round_trips = 0
        """Bursts from clients that follow an output of the server, or begin a connection."""
        self.client_bytes = 0
        """Bytes received from clients."""
        self.server_bytes = 0
        """Bytes received from the server."""

        self._links: list[Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="TcpProxy", daemon=True)
        self._listening: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        for attempt in itertools.count(1):
            self.port = free_port()
            try:
                self._wait(self._listen())
            except OSError:
                if attempt == 10:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    @property
    def open_connections(self) -> int:
        """Clients whose socket is open just now."""
        return sum(link.client.is_open for link in tuple(self._links))

    @property
    def open_server_connections(self) -> int:
        """Sockets to the server that are open just now."""
        return sum(link.server.is_open for link in tuple(self._links))

    @property
    def client_messages(self) -> list[bytes]:
        """The types of all messages from clients, connection after connection."""
        return [kind for link in tuple(self._links) for kind in tuple(link.reader.messages)]

    @property
    def statements(self) -> list[str]:
        """The SQL of all simple queries and Parse messages, connection after connection."""
        return [sql for link in tuple(self._links) for sql in tuple(link.reader.statements)]

    @property
    def named_statements(self) -> list[str]:
        """The names of all prepared statements that have one."""
        return [name for link in tuple(self._links) for name in tuple(link.reader.named)]

    @property
    def startups(self) -> list[dict[str, str]]:
        """The startup parameters of each connection that sent any."""
        return [link.reader.startup for link in tuple(self._links) if link.reader.startup is not None]

    @property
    def cancel_requests(self) -> int:
        return sum(link.reader.is_cancel for link in tuple(self._links))

    @property
    def tls_requests(self) -> int:
        return sum(link.reader.asked_for_tls for link in tuple(self._links))

    def reset_all(self) -> None:
        """Reset all connections, both sides (RST)."""
        self._do(Link.abort)

    def drop_all(self) -> None:
        """End all connections in order, both sides (FIN)."""
        self._do(Link.end)

    def silence_all(self) -> None:
        """The paths of all connections are dead from now on, for good; those of new ones are not."""
        self._do(Link.silence)

    async def stop_listening(self) -> None:
        """From now on the kernel refuses connections; those that are open stay."""
        self._wait(self._stop_listening())

    async def listen_again(self) -> None:
        """Listen on the same port as before."""
        self._wait(self._listen())

    def _wait(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    def _do(self, work: Callable[[Link], None]) -> None:
        async def to_all() -> None:
            for link in self._links:
                work(link)

        self._wait(to_all())

    async def _listen(self) -> None:
        listener = socket.create_server((self.host, self.port), backlog=1024)
        listener.setblocking(False)
        self._listening = self._loop.create_task(self._accept_all(listener))

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})
            self._listening = None

    async def _close(self) -> None:
        await self._stop_listening()
        for link in self._links:
            link.abort()
        await asyncio.gather(*(link.closed() for link in self._links))

    async def _accept_all(self, listener: socket.socket) -> None:
        # no asyncio.Server: CPython 3.13.0's prints a traceback if it is closed in the moment of an accept
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                await self._loop.connect_accepted_socket(self._accept, client)

    def _accept(self) -> Side:
        self.accepted += 1
        link = Link(self)
        self._links.append(link)
        return link.client
