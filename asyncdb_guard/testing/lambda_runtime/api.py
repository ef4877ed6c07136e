"""Several Lambda execution environments at once, served from one thread."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime
from asyncdb_guard.testing.loop_thread import LoopThread


class RuntimeApi:
    """Starts environments and serves them all from one thread, until `close()`."""

    def __init__(self) -> None:
        self._thread = LoopThread("RuntimeApi")
        self._environments: list[LambdaRuntime] = []

    @classmethod
    def start(cls) -> Self:
        """Begin to serve."""
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
    ) -> LambdaRuntime:
        """Start one more environment, as `LambdaRuntime.start` does; does not wait until it is up."""
        directory = Path(cwd or Path.cwd()).resolve()
        environment = LambdaRuntime(self._thread, handler, env or {}, directory, python, own_thread=False)
        begun = self._thread.submit(environment.begin())
        try:
            begun.result()
        finally:
            # Ctrl-C may have ended the wait: `close()` must know the process all the same.
            self._environments += [environment] if begun.exception() is None else []
        return environment

    def close(self) -> None:
        """End all environments, together."""

        async def all_of_them() -> None:
            await asyncio.gather(*(environment.end() for environment in self._environments))
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

        if self._thread.running:
            self._thread.run(all_of_them())
            self._thread.stop()
