"""One Lambda execution environment: a real `awslambdaric` process and the Runtime API that only it sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from asyncdb_guard.testing.lambda_runtime.endpoint import FUNCTION, REGION, Answer, Endpoint, EnvironmentFailed
from asyncdb_guard.testing.loop_thread import LoopThread

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


class LambdaRuntime:
    """One execution environment: a process that answers one event at a time, until `close()` or its own end.

    Made by `LambdaRuntime.start(...)`, or by a `RuntimeApi` for several.
    """

    def __init__(
        self, thread: LoopThread, handler: str, env: Mapping[str, str], cwd: Path, python: str, *, own_thread: bool
    ) -> None:
        self.returncode: int | None = None
        """How the process ended; minus the signal's number if one killed it."""
        self._thread = thread
        self._own_thread = own_thread
        self._handler = handler
        self._env = env
        self._cwd = cwd
        self._python = python
        self._stdout, self._stderr = _Output(), _Output()

    @classmethod
    def start(
        cls,
        handler: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        python: str = sys.executable,
    ) -> Self:
        """Start a process for `handler` ("module.function", found from `cwd`); does not wait until it is up.

        It sees Lambda's usual variables, `env`, and little of ours. A signal handler of Python's runs in an idle
        process only with `AWS_EXECUTION_ENV="AWS_Lambda_python3.12"` or later in `env`, as on Lambda.

        Raises RuntimeError where `awslambdaric` is not installed.
        """
        if python == sys.executable and find_spec("awslambdaric") is None:
            raise RuntimeError(
                "The package awslambdaric is not installed. Install the extra: pip install 'asyncdb-guard[testing]'."
            )
        thread = LoopThread("LambdaRuntime")
        thread.start()
        runtime = cls(thread, handler, env or {}, Path(cwd or Path.cwd()).resolve(), python, own_thread=True)
        try:
            thread.run(runtime.begin())
        except BaseException:
            thread.stop()
            raise
        return runtime

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process's ID."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """All that the process has written to stdout so far."""
        return self._stdout.text()

    @property
    def stderr(self) -> str:
        """All that the process has written to stderr so far."""
        return self._stderr.text()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The CloudWatch EMF documents that the process has printed so far."""
        return [json.loads(line) for line in self.stdout.splitlines() if _is_emf(line)]

    @property
    def logs(self) -> list[str]:
        """The lines that the process has written so far, metrics left out: stdout's, then stderr's."""
        return [line for line in (*self.stdout.splitlines(), *self.stderr.splitlines()) if not _is_emf(line)]

    def invoke(self, event: Any, *, timeout_ms: int = 6000, timeout: float = 10.0) -> Answer:
        """Hand the event to the process and wait for its answer.

        `timeout_ms` is the function's own timeout, as its context tells it; nothing here enforces it. Raises
        TimeoutError after `timeout` seconds, EnvironmentFailed if the process can't answer any more.
        """
        return self.submit(event, timeout_ms=timeout_ms).result(timeout)

    def submit(self, event: Any, *, timeout_ms: int = 6000) -> Future[Answer]:
        """Hand the event over without waiting. Several wait in line."""
        return self._thread.submit(self._endpoint.invoke(event, timeout_ms))

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Return once the process has asked for its first event. Raises as `invoke` does."""
        self._thread.run(self._until_ready(), timeout)

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
        return self._thread.run(self._until_ended(), timeout)

    def freeze(self) -> None:
        """Stop the process and its children where they are (SIGSTOP), as Lambda does between invocations.

        Raises EnvironmentFailed if it has ended.
        """
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on (SIGCONT). Raises EnvironmentFailed if the process has ended."""
        self._signal_all(signal.SIGCONT)

    def close(self) -> None:
        """End the process: gently if it waits for an event, else with SIGKILL. Safe to call twice."""
        if self._thread.running:
            self._thread.run(self.end())
            if self._own_thread:
                self._thread.stop()

    def _signal_all(self, number: int) -> None:
        if self.returncode is not None:  # its ID may be another process's by now
            raise EnvironmentFailed(f"The process has ended with exit code {self.returncode}.")
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

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
        try:
            self._process = await asyncio.create_subprocess_exec(
                self._python, "-m", "awslambdaric", self._handler,
                cwd=self._cwd, env=self._variables(address), start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=self._stdout.file, stderr=self._stderr.file,
            )  # fmt: skip
        except OSError:
            self._stdout.close()
            self._stderr.close()
            await self._endpoint.close()
            raise
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


def _is_emf(line: str) -> bool:
    return line.startswith("{") and '"_aws"' in line
