"""A server that says what it is told to, in place of what managed platforms and broken servers say."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from examples.harness.ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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
