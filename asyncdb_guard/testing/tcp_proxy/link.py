"""One client's connection through the proxy, and the one to the server that belongs to it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable

from asyncdb_guard.testing.tcp_proxy.wire import FrontendReader


class ProxyState:
    """What a proxy does to its connections, and what it has counted."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        """Host and port of the server."""

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


class Link:
    """Both sides of one connection; lives in the proxy's thread."""

    def __init__(self, proxy: ProxyState) -> None:
        self.proxy = proxy
        self.reader = FrontendReader()
        self.client = Side(self, self._from_client)
        self.server = Side(self, self._from_server)
        self.dialling: asyncio.Task[None] | None = None
        self._severed = False
        self._server_spoke = True
        self._underway: deque[Callable[[], None]] = deque()

    def accepted(self) -> None:
        if self.proxy.refuse:
            self.client.abort()
        elif not (self.proxy.hang or self.proxy.deaf):
            self.dialling = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy.target)
        except OSError:
            self.client.abort()

    def abort(self) -> None:
        if self.dialling is not None:
            self.dialling.cancel()
        self.client.abort()
        self.server.abort()

    def silence(self) -> None:
        self._severed = True

    def end(self) -> None:
        self.client.end()
        self.server.end()

    async def closed(self) -> None:
        """Return once both sockets are closed."""
        if self.dialling is not None:
            await asyncio.wait([self.dialling])
        await asyncio.gather(self.client.closed(), self.server.closed())

    def _from_client(self, data: bytes) -> None:
        self.proxy.client_bytes += len(data)
        if self._server_spoke:
            self.proxy.round_trips += 1
            self._server_spoke = False
        self.reader.feed(data)
        self._pass(lambda: self.server.write(data))

    def _from_server(self, data: bytes) -> None:
        self.proxy.server_bytes += len(data)
        self._server_spoke = True
        if self.reader.asked_for_tls and self.reader.startup is None and data == b"S":
            self.reader.tls_granted()
        self._pass(lambda: self.client.write(data))

    def lost(self, side: Side, error: Exception | None) -> None:
        other = self.server if side is self.client else self.client
        self._pass(other.abort if error else other.end)

    def _pass(self, deliver: Callable[[], None]) -> None:
        """Let something through to the other side: now, later, or never."""
        if self._is_severed():
            return
        if self.proxy.latency or self._underway:
            self._underway.append(deliver)
            asyncio.get_running_loop().call_later(self.proxy.latency, self._deliver_next)
        else:
            deliver()

    def _deliver_next(self) -> None:
        deliver = self._underway.popleft()
        if not self._is_severed():
            deliver()

    def _is_severed(self) -> bool:
        self._severed = self._severed or self.proxy.deaf
        return self._severed


class Side(asyncio.Protocol):
    """One socket of a link. What is asked of it before it is connected waits for that."""

    def __init__(self, link: Link, received: Callable[[bytes], None]) -> None:
        self._link = link
        self._received = received
        self._transport: asyncio.Transport | None = None
        self._early: list[Callable[[], None]] = []
        self.is_open = False
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True
        if self is self._link.client:
            self._link.accepted()
        for act in self._early:
            act()

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._closed.set()
        self._link.lost(self, exc)

    async def closed(self) -> None:
        """Return once the socket is closed, or if there never was one."""
        if self._transport is not None:
            await self._closed.wait()

    def write(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(lambda: self.write(data))
        elif not self._transport.is_closing():
            self._transport.write(data)

    def end(self) -> None:
        if self._transport is None:
            self._early.append(self.end)
        else:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is None:
            self._early.append(self.abort)
        elif not self._transport.is_closing():
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
