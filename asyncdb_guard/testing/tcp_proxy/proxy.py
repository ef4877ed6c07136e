"""A TCP proxy in front of a PostgreSQL: it counts, it reads along, and it fails on command.

It runs in a thread of its own, so it also works while the test's loop is blocked, frozen or gone.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from asyncdb_guard.testing.loop_thread import LoopThread
from asyncdb_guard.testing.ports import LOOPBACK, free_port
from asyncdb_guard.testing.tcp_proxy.link import Link, ProxyState, Side


class TcpProxy(ProxyState):
    """A proxy on a loopback port, from `with` or `async with` to its end.

    Everything may be read and set from any thread at any time.
    """

    host = LOOPBACK

    def __init__(self, target_host: str, target_port: int) -> None:
        super().__init__((target_host, target_port))
        self.port = 0
        """Where to connect to, once it is entered; the same after `listen_again()`."""
        self._links: list[Link] = []
        self._thread = LoopThread("TcpProxy")
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    def to(cls, url: str) -> Self:
        """A proxy in front of the server of a database URL."""
        target = urlsplit(url)
        return cls(target.hostname or LOOPBACK, target.port or 5432)

    def url(self, url: str) -> str:
        """The same database URL, with the proxy's host and port."""
        target = urlsplit(url)
        login = f"{target.netloc.rpartition('@')[0]}@" if "@" in target.netloc else ""
        return urlunsplit(target._replace(netloc=f"{login}{self.host}:{self.port}"))

    def __enter__(self) -> Self:
        self._thread.start()
        for attempt in itertools.count(1):
            self.port = free_port()
            try:
                self._thread.run(self._listen(), 10.0)
            except OSError:
                if attempt == 10:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(self._close(), 10.0)
        self._thread.stop()

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

    def go_deaf(self) -> None:
        """The path is dead from now on: the same as `deaf = True`."""
        self.deaf = True

    def silence_all(self) -> None:
        """The paths of all connections are dead from now on, for good; those of new ones are not."""
        self._do(Link.silence)

    async def stop_listening(self) -> None:
        """From now on the kernel refuses connections; those that are open stay."""
        self._thread.run(self._stop_listening(), 10.0)

    async def listen_again(self) -> None:
        """Listen on the same port as before."""
        self._thread.run(self._listen(), 10.0)

    def _do(self, work: Callable[[Link], None]) -> None:
        async def to_all() -> None:
            for link in self._links:
                work(link)

        self._thread.run(to_all(), 10.0)

    async def _listen(self) -> None:
        listener = socket.create_server((self.host, self.port), backlog=1024)
        listener.setblocking(False)
        self._listening = self._thread.loop.create_task(self._accept_all(listener))

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
                client, _ = await self._thread.loop.sock_accept(listener)
                await self._thread.loop.connect_accepted_socket(self._accept, client)

    def _accept(self) -> Side:
        self.accepted += 1
        link = Link(self)
        self._links.append(link)
        return link.client
