"""A TCP proxy in front of a PostgreSQL: it counts, it reads along, and it fails on command.

It runs in a thread of its own, so it also works while the test's loop is blocked, frozen or gone.
"""

from __future__ import annotations

import asyncio
import contextlib
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
        self._listener: socket.socket | None = None
        self._accepting: set[asyncio.Task[object]] = set()

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
        for _ in range(9):
            with contextlib.suppress(OSError):  # somebody took the port meanwhile
                return self._entered()
        try:
            return self._entered()
        except OSError:
            self._thread.stop()
            raise

    def _entered(self) -> Self:
        self.port = free_port()
        self._thread.run(self._listen(), 10.0)
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
        """How many connections asked to cancel a statement."""
        return sum(link.reader.is_cancel for link in tuple(self._links))

    @property
    def tls_requests(self) -> int:
        """How many connections asked for TLS."""
        return sum(link.reader.asked_for_tls for link in tuple(self._links))

    def reset_all(self) -> None:
        """Reset all connections, both sides (RST)."""
        self._do(Link.abort)

    def drop_all(self) -> None:
        """End all connections in order, both sides (FIN)."""
        self._do(Link.end)

    def go_deaf(self) -> None:
        """Drop everything from now on, with the sockets open: the same as `deaf = True`."""
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
        self._listener = socket.create_server((self.host, self.port), backlog=1024)
        self._listener.setblocking(False)
        # no asyncio.Server or sock_accept: either may lose a socket if it ends in the moment of an accept
        self._thread.loop.add_reader(self._listener, self._accept_one, self._listener)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._thread.loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _close(self) -> None:
        await self._stop_listening()
        await asyncio.gather(*self._accepting)
        for link in self._links:
            link.abort()
        await asyncio.gather(*(link.closed() for link in self._links))

    def _accept_one(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was gone again
            client, _ = listener.accept()
            loop = self._thread.loop
            accepting = loop.create_task(loop.connect_accepted_socket(self._link, client))
            self._accepting.add(accepting)
            accepting.add_done_callback(self._accepting.discard)

    def _link(self) -> Side:
        self.accepted += 1
        link = Link(self)
        self._links.append(link)
        return link.client
