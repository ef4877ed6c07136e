"""A line with a delay, in threads: a timer of asyncio's is only good to a millisecond."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Self

from asyncdb_guard.testing.ports import LOOPBACK


class SlowLine:
    """Passes each byte on `delay` seconds later, in both directions. Good for one question and answer at a time."""

    def __init__(self, host: str, port: int, delay: float) -> None:
        self._target = (host, port)
        self._delay = delay
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        """Questions that the client has the answer to, or gets it in this moment."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self._target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = threading.Event()
            for source, sink, note in ((client, server, asked.set), (server, client, partial(self._answer, asked))):
                threading.Thread(target=self._pass, args=(source, sink, note), daemon=True).start()

    def _answer(self, asked: threading.Event) -> None:
        if asked.is_set():
            asked.clear()
            self.round_trips += 1

    def _pass(self, source: socket.socket, sink: socket.socket, note: Callable[[], None]) -> None:
        try:
            while data := source.recv(65536):
                time.sleep(self._delay)
                data += _waiting(source)
                note()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # the other side has hung up
            return


def _waiting(source: socket.socket) -> bytes:
    """What has come in the meantime: the rest of a question that was written in two goes, right behind the first."""
    try:
        return source.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
