"""One Lambda execution environment: a real `awslambdaric` process and the Runtime API that only it sees."""

from __future__ import annotations

import asyncio
import os
import signal
import time
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
        self._output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

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
        return self._output[1].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """All that the process has written to stderr so far."""
        return self._output[2].decode(errors="replace")

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
        """Stop the process where it is (SIGSTOP), as Lambda does between invocations."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process: gently if it waits for an event, else with SIGKILL. Safe to call twice."""
        self._api.run(self.end())

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    async def begin(self) -> None:
        """Start the process. For the API's own thread."""
        self._endpoint = Endpoint(lambda: f"-- stdout\n{self.stdout}\n-- stderr\n{self.stderr}")
        address = await self._endpoint.open()
        self._process = await asyncio.create_subprocess_exec(
            self._python, "-m", "awslambdaric", self._handler,
            cwd=self._cwd, env=self._variables(address), start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
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
        """Collect the output until the process ends, then fail whatever still waits for it."""
        await asyncio.gather(*(self._collect(number) for number in self._output))
        self.returncode = await self._process.wait()
        self._endpoint.fail(f"The process has ended with exit code {self.returncode}.")
        await self._endpoint.close()
        return self.returncode

    async def _collect(self, number: int) -> None:
        stream = {1: self._process.stdout, 2: self._process.stderr}[number]
        assert stream is not None
        while piece := await stream.read(65536):
            self._output[number] += piece

    async def _until_ready(self) -> None:
        await self._endpoint.asked.wait()
        self._endpoint.check()

    async def _until_ended(self) -> int:
        return await asyncio.shield(self._ended)
