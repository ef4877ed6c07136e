"""A loopback stand-in for the Lambda Runtime API, with a real `awslambdaric` process behind each environment."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .endpoint import Answer, EnvironmentFailed
from .environment import Environment

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from concurrent.futures import Future

__all__ = ["Answer", "Environment", "EnvironmentFailed", "RuntimeApi"]

T = TypeVar("T")


class RuntimeApi:
    """Starts environments and serves them all from one thread, until `close()`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="RuntimeApi", daemon=True)
        self._environments: list[Environment] = []

    @classmethod
    def start(cls) -> Self:
        api = cls()
        api._thread.start()
        return api

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(
        self,
        handler: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        python: str = sys.executable,
    ) -> Environment:
        """Start a process for `handler` ("module.function", found from `cwd`); does not wait until it is up.

        It sees Lambda's usual variables, `env`, and little of ours. A signal handler of Python's runs in an idle
        process only with `AWS_EXECUTION_ENV="AWS_Lambda_python3.12"` or later in `env`, as on Lambda.
        """
        environment = Environment(self, handler, env or {}, Path(cwd or Path.cwd()).resolve(), python)
        begun = self.submit(environment.begin())
        try:
            begun.result()
        finally:
            # Ctrl-C may have ended the wait: `close()` must know the process all the same.
            if begun.exception() is None:
                self._environments.append(environment)
        return environment

    def close(self) -> None:
        """End all environments, together."""

        async def all_of_them() -> None:
            await asyncio.gather(*(environment.end() for environment in self._environments))
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)

        if self._thread.is_alive():
            self.run(all_of_them())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run in the API's thread, and wait. Raises TimeoutError after `timeout` seconds."""
        return self.submit(work).result(timeout)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run in the API's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)
