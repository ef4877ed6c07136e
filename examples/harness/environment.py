"""One Lambda execution environment: a real `awslambdaric` process and the Runtime API that only it sees."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .endpoint import FUNCTION, REGION, Answer, Endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from .runtime_api import RuntimeApi

_INHERITED = ("COVERAGE_", "DYLD_", "LANG", "LC_", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "VIRTUAL_ENV")

PORTABLE = Path(__file__).parent / "portable"
"""Stands in for the native part of `awslambdaric` where that was not built: beyond Linux."""


class _Output:
    """What a process writes to. A file and not a pipe: a child of the process may hold it open for ever."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self._all: bytes | None = None

    def text(self) -> str:
        return (self._read() if self._all is None else self._all).decode(errors="replace")

    def close(self) -> None:
        self._all = self._read()
        self.file.close()

    def _read(self) -> bytes:
        return os.pread(self.file.fileno(), os.fstat(self.file.fileno()).st_size, 0)


class Environment:
    """One process, which answers one event at a time; lives until `close()`, or until its process has ended."""

    def __init__(self, api: RuntimeApi, handler: str, env: Mapping[str, str], cwd: Path, python: str) -> None:
        self.returncode: int | None = None
        """How the process ended; minus the signal's number if one killed it."""
        self._api = api
        self._handler = handler
        self._env = env
        self._cwd = cwd
        self._python = python
        self._stdout, self._stderr = _Output(), _Output()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        """All that the process has written to stdout so far."""
        return self._stdout.text()

    @property
    def stderr(self) -> str:
        """All that the process has written to stderr so far."""
        return self._stderr.text()

    def invoke(self, event: Any, *, timeout_ms: int = 6000, timeout: float = 10.0) -> Answer:
        """Hand the event to the process and wait for its answer.

        `timeout_ms` is the function's own timeout, as its context tells it; nothing here enforces it. Raises
        TimeoutError after `timeout` seconds, EnvironmentFailed if the process can't answer any more.
        """
        return self.submit(event, timeout_ms=timeout_ms).result(timeout)

    def submit(self, event: Any, *, timeout_ms: int = 6000) -> Future[Answer]:
        """Hand the event over without waiting. Several wait in line."""
        return self._api.submit(self._endpoint.invoke(event, timeout_ms))

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Return once the process has asked for its first event. Raises as `invoke` does."""
        self._api.run(self._until_ready(), timeout)

    def terminate(self, grace: float = 2.0) -> float:
        """SIGTERM, then SIGKILL after `grace` seconds; the seconds until the process had ended."""
        began = time.monotonic()
        self._signal(signal.SIGTERM)
        try:
            self.wait(grace)
        except TimeoutError:
            self.kill()
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end; raises TimeoutError. Returns how it ended."""
        return self._api.run(self._until_ended(), timeout)

    def freeze(self) -> None:
        """Stop the process and its children where they are (SIGSTOP), as Lambda does between invocations."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on (SIGCONT)."""
        os.killpg(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the process: gently if it waits for an event, else with SIGKILL. Safe to call twice."""
        self._api.run(self.end())

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            # It may have ended a moment ago: `returncode` waits for the rest of its output.
            with suppress(ProcessLookupError):
                # SIGKILL for all that it has forked, too: with one of them alive its output would never end.
                (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    async def begin(self) -> None:
        """Start the process. For the API's own thread."""
        self._endpoint = Endpoint(lambda: f"-- stdout\n{self.stdout}\n-- stderr\n{self.stderr}")
        address = await self._endpoint.open()
        self._process = await asyncio.create_subprocess_exec(
            self._python, "-m", "awslambdaric", self._handler,
            cwd=self._cwd, env=self._variables(address), start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=self._stdout.file, stderr=self._stderr.file,
        )  # fmt: skip
        self._ended = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """`close()`, for the API's own thread."""
        if not self._ended.done():
            self._endpoint.no_more_events()
            try:
                await asyncio.wait_for(asyncio.shield(self._ended), 1.0)
            except TimeoutError:
                self._signal(signal.SIGKILL)
        await self._ended

    def _variables(self, address: str) -> dict[str, str]:
        paths = [self._cwd] if find_spec("runtime_client") else [self._cwd, PORTABLE]
        inherited = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
        return {
            **inherited,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "AWS_LAMBDA_FUNCTION_NAME": FUNCTION,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{FUNCTION}",
            "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/01/[$LATEST]0123456789abcdef",
            "AWS_LAMBDA_RUNTIME_API": address,
            "AWS_REGION": REGION,
            "LAMBDA_TASK_ROOT": str(self._cwd),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "TZ": ":UTC",
            "_HANDLER": self._handler,
            **self._env,
        }

    async def _watch(self) -> int:
        """Wait for the end of the process, then end its children and fail whatever still waits for an answer."""
        self.returncode = await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._stdout.close()
        self._stderr.close()
        self._endpoint.fail(f"The process has ended with exit code {self.returncode}.")
        await self._endpoint.close()
        return self.returncode

    async def _until_ready(self) -> None:
        await self._endpoint.asked.wait()
        self._endpoint.check()

    async def _until_ended(self) -> int:
        return await asyncio.shield(self._ended)
