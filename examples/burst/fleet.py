"""Starts the fleet's processes, releases them at the same moment, and collects their reports."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Self

from examples.burst.measurements import SignUp
from examples.burst.scenario import PoolName, Scenario

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90.0
"""Generous, for 48 interpreters on two busy cores."""


class FleetError(Exception):
    """A worker died. The text has the end of what the fleet wrote to stderr."""


class Fleet:
    """The processes of one run. They live as long as the block of `started`, however it ends."""

    def __init__(self, scenario: Scenario, workers: list[Process], log: BinaryIO) -> None:
        self._scenario = scenario
        self._workers = workers
        self._log = log

    @classmethod
    @asynccontextmanager
    async def started(
        cls, pool: PoolName, scenario: Scenario, environment: Mapping[str, str]
    ) -> AsyncGenerator[Self, None]:
        """Start one process per environment; none connects before `go`."""
        workers: list[Process] = []
        with tempfile.TemporaryFile() as log:
            try:
                for number in range(scenario.processes):
                    order = {
                        "name": pool,
                        "number": number,
                        "environments": scenario.environments_per_process(pool),
                        "arrivals": scenario.arrivals,
                    }
                    workers.append(await _spawn(json.dumps(order), environment, log))
                yield cls(scenario, workers, log)
            finally:
                # Kill all before the first wait, so that a second interruption cannot leave one alive.
                for worker in workers:
                    if worker.returncode is None:
                        worker.kill()
                for worker in workers:
                    await worker.wait()

    async def wait_ready(self) -> None:
        """Return when every process has finished its imports. Raises FleetError if one dies."""

        async def one(worker: Process) -> None:
            if not await _line(worker):
                raise self._failure()

        async with asyncio.timeout(START_SECONDS), asyncio.TaskGroup() as waiting:
            for worker in self._workers:
                waiting.create_task(one(worker))

    def go(self) -> None:
        """Start the clock of every process."""
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")

    async def collect(self, sign_ups: list[SignUp]) -> None:
        """Add each sign-up as it is reported, until all have been. Raises FleetError if a process dies before that."""

        async def one(worker: Process) -> None:
            for _ in self._scenario.arrivals:
                if not (line := await _line(worker)):
                    raise self._failure()
                sign_ups.append(SignUp(**json.loads(line)))

        async with asyncio.TaskGroup() as collecting:
            for worker in self._workers:
                collecting.create_task(one(worker))

    def _failure(self) -> FleetError:
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")
        return FleetError(f"A process of the fleet died. Its last output:\n{said[-2000:]}")


async def _spawn(order: str, environment: Mapping[str, str], log: BinaryIO) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.burst.worker", order,
        stdin=PIPE, stdout=PIPE, stderr=log, env=environment, cwd=ROOT,
        # Its own process group: Ctrl-C goes to the demo only, which ends its workers itself.
        process_group=0,
    )  # fmt: skip


async def _line(worker: Process) -> bytes:
    assert worker.stdout is not None
    return await worker.stdout.readline()
