"""The Runtime API as one execution environment sees it: events in a line, each with its answer.

Source: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asyncdb_guard.testing.lambda_runtime.http import read_request, write_response
from asyncdb_guard.testing.ports import LOOPBACK

FUNCTION = "asyncdb-guard"
REGION = "eu-west-1"
_ARN = f"arn:aws:lambda:{REGION}:123456789012:function:{FUNCTION}"


@dataclass(frozen=True)
class Answer:
    """What an invocation came to."""

    payload: Any
    """The handler's answer; None after an error."""
    error: dict[str, Any] | None
    """`errorMessage`, `errorType`, `stackTrace`, or None."""
    seconds: float
    """From the invocation to the answer; the first one waits for the process to be up."""


class EnvironmentFailed(Exception):
    """The process can't answer: its handler could not be imported, or it has ended. Shows what it said."""


class Endpoint:
    """Serves one process on a port of its own, until `close()`. Lives in one event loop."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self.asked = asyncio.Event()
        """The process has asked for its first event, or never will."""
        self._describe = describe
        self._failure: str | None = None
        self._events: asyncio.Queue[tuple[str, bytes, int] | None] = asyncio.Queue()
        self._pending: dict[str, asyncio.Future[tuple[bool, bytes]]] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Listen; returns host:port."""
        self._server = await asyncio.start_server(self._connected, LOOPBACK, 0)
        return f"{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Listen no more, and hang up. The process must have ended."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def invoke(self, event: Any, timeout_ms: int) -> Answer:
        """Put the event in the line and wait for its answer. Raises EnvironmentFailed."""
        self.check()
        began = time.monotonic()
        request_id = str(uuid.uuid4())
        self._pending[request_id] = asyncio.get_running_loop().create_future()
        self._events.put_nowait((request_id, json.dumps(event).encode(), timeout_ms))
        try:
            succeeded, body = await self._pending[request_id]
        finally:
            del self._pending[request_id]
        seconds = time.monotonic() - began
        document = json.loads(body, parse_constant=_refuse)
        return Answer(document, None, seconds) if succeeded else Answer(None, document, seconds)

    def no_more_events(self) -> None:
        """A process that waits for an event gives up, now or later, and ends by itself, exit handlers included."""
        self._events.put_nowait(None)

    def fail(self, reason: str) -> None:
        """Nothing will be answered any more. The first reason is the one that counts."""
        self._failure = self._failure or reason
        self.asked.set()
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(EnvironmentFailed(f"{self._failure}\n{self._describe()}"))

    def check(self) -> None:
        """Raises EnvironmentFailed if there was a failure."""
        if self._failure is not None:
            raise EnvironmentFailed(f"{self._failure}\n{self._describe()}")

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the runtime client, request after request."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await read_request(reader)) is not None:
                await self._answer(*request, writer)

    async def _answer(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        match method, path.split("/")[3:]:
            case "GET", ["invocation", "next"]:
                self.asked.set()
                self._hand_over(await self._events.get(), writer)
            case "POST", ["invocation", request_id, ("response" | "error") as outcome]:
                waiting = self._pending.get(request_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result((outcome == "response", body))
                write_response(writer, 202, b'{"status":"OK"}')
            case "GET", ["restore", "next"]:
                # SnapStart: asked after the hooks before the snapshot, answered when the environment is restored
                write_response(writer, 200, b"{}")
            case "POST", ["init", "error"]:
                error = json.loads(body)
                self.fail(
                    f"The handler could not be imported: {error['errorType']}: {error['errorMessage']}\n"
                    + "".join(error.get("stackTrace") or ())
                )
                write_response(writer, 202, b'{"status":"OK"}')
            case _:
                write_response(writer, 404, b'{"errorType":"NotFound"}')
        await writer.drain()

    def _hand_over(self, event: tuple[str, bytes, int] | None, writer: asyncio.StreamWriter) -> None:
        if event is None:
            self.no_more_events()  # Other processes of this environment may wait, too.
            write_response(writer, 410, b"{}")
            return
        request_id, payload, timeout_ms = event
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + timeout_ms),
            "Lambda-Runtime-Invoked-Function-Arn": _ARN,
            "Lambda-Runtime-Trace-Id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Sampled=0",
        }
        write_response(writer, 200, payload, headers)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON; Lambda's callers can't read it.")
