"""A server that says what it is told to, in place of what managed platforms and broken servers say."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from asyncdb_guard.testing.ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message of PostgreSQL's backend protocol."""
    return kind + struct.pack("!i", len(body) + 4) + body


def refusal(sqlstate: str | bytes, text: str = "no", *, severity: str = "FATAL") -> bytes:
    """An ErrorResponse."""
    code = sqlstate if isinstance(sqlstate, bytes) else sqlstate.encode()
    fields = (b"S" + severity.encode(), b"V" + severity.encode(), b"C" + code, b"M" + text.encode())
    return message(b"E", b"\0".join(fields) + b"\0\0")


@asynccontextmanager
async def speaker(*said: bytes) -> AsyncIterator[str]:
    """Answer every connection's startup packet with `said`, then hang up; the URL that leads there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(4096)
            writer.write(b"".join(said))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    async with server:
        yield f"postgresql://user@{LOOPBACK}:{server.sockets[0].getsockname()[1]}/db?sslmode=disable"


class Platform:
    """A server that takes simple queries alone, and refuses some, as platforms do which are almost PostgreSQL."""

    def __init__(
        self,
        refuses: Callable[[str], str | None] = lambda _: None,
        *,
        counts: Callable[[str], int] = lambda _: 0,
        version: str = "16.0",
        knows: Container[str] | None = None,
        reports: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """`refuses(sql)` gives the SQLSTATE of a refusal, or None; `counts(sql)` the rows of a SELECT in its tag.

        `knows`: the startup parameters that `version` has; any other one is refused, as an old server does. `reports()`
        gives parameters that are reported at the login and with each answer.
        """
        self._version = version
        self._knows = knows
        self._refuses = refuses
        self._counts = counts
        self._reports = reports
        self.logins = 0
        self.asked: list[str] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The URL that leads there."""
        server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        async with server:
            yield f"postgresql://user@{LOOPBACK}:{server.sockets[0].getsockname()[1]}/db?sslmode=disable"

    def _status(self, parameters: dict[str, str]) -> bytes:
        """ParameterStatus messages, those of `reports` included."""
        told = parameters | self._reports()
        return b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in told.items())

    def _is_known(self, parameter: str) -> bool:
        return self._knows is None or parameter in self._knows

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = message(b"Z", b"I")
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            startup = await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
            parameters = startup[4:].decode().split("\0")[::2]
            if unknown := next((name for name in parameters if name and not self._is_known(name)), None):
                writer.write(refusal("42704", f'unrecognized configuration parameter "{unknown}"'))
                writer.close()
                return
            self.logins += 1
            told = {
                "server_version": self._version,
                "client_encoding": "UTF8",
                "TimeZone": "UTC",
                "session_authorization": "user",
            }
            key = message(b"K", struct.pack("!ii", self.logins, 0))
            writer.write(b"".join((message(b"R", bytes(4)), self._status(told), key, ready)))
            while (kind := await reader.readexactly(1)) == b"Q":
                body = await reader.readexactly(struct.unpack("!i", await reader.readexactly(4))[0] - 4)
                sql = body.rstrip(b"\0").decode()
                self.asked.append(sql)
                sqlstate = self._refuses(sql)
                last = sql.rpartition(";")[2]
                tag = f"SELECT {self._counts(sql)}" if last.startswith("SELECT") else last
                done = message(b"C", tag.encode() + b"\0")
                answer = done if sqlstate is None else refusal(sqlstate, severity="ERROR")
                writer.write(answer + self._status({}) + ready)
            assert kind == b"X"
        writer.close()
