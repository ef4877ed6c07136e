"""New processes, from their start to their first row: time, imports and memory, guarded and written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks.figures import Figure, compare

WALL = "Cold start to the first row, wall"
CPU = "Cold start to the first row, CPU"
STAGES = {
    "started": "Cold start: Python and asyncio, CPU",
    "imported": "Cold start: imports, CPU",
    "configured": "Cold start: settings, CPU",
    "answered": "Cold start: connect and first row, CPU",
}
MODULES = "Modules at the first row"
MEMORY = "Peak memory at the first row"

BY_HAND, GUARDED, BARE = "by hand", "GuardedPool", "asyncpg connection"
_PROGRAM = Path(__file__).with_name("cold_start.py")
_ARGUMENTS = {BY_HAND: "by_hand", GUARDED: "guarded", BARE: "bare"}


@dataclass(frozen=True)
class _Moment:
    """How far a process is, and when."""

    wall: float
    """Milliseconds since it was asked for."""
    cpu: float
    """Milliseconds of its own."""
    modules: int
    memory: float
    """Peak so far, in MiB."""


def cold_starts(server: Cluster, *, rounds: int) -> list[Figure]:
    runs: dict[str, list[dict[str, _Moment]]] = {name: [] for name in _ARGUMENTS}
    for number in range(rounds + 1):
        for name, argument in _ARGUMENTS.items():
            moments = _start(argument, server.url())
            if number:  # the first may have had to compile
                runs[name].append(moments)

    def samples(stage: str, field: str) -> dict[str, list[float]]:
        return {name: [getattr(moments[stage], field) for moments in own] for name, own in runs.items()}

    last = "answered"
    figures = compare(WALL, samples(last, "wall"), "ms", bars={GUARDED: {BY_HAND: 1.1}})
    figures += compare(CPU, samples(last, "cpu"), "ms", bars={GUARDED: {BY_HAND: 1.1}})
    before = dict.fromkeys(runs, [0.0] * rounds)
    for stage, measure in STAGES.items():
        until = samples(stage, "cpu")
        taken = {name: [b - a for a, b in zip(before[name], until[name], strict=True)] for name in runs}
        figures += compare(measure, taken, "ms")
        before = until
    figures += compare(MODULES, samples(last, "modules"), "")
    if all(moments[last].memory for own in runs.values() for moments in own):
        figures += compare(MEMORY, samples(last, "memory"), "MiB", bars={GUARDED: {BY_HAND: 1.05}})
    return figures


def _start(argument: str, url: str) -> dict[str, _Moment]:
    environment = os.environ | {"LAMBDA_DATABASE_URL": url}
    # else every start compiles our sources anew, while a peer from pip comes compiled
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(_PROGRAM), argument],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        moments: dict[str, _Moment] = {}
        for line in process.stdout:
            stage, cpu, modules, memory = line.split()
            wall = (time.perf_counter() - began) * 1000
            moments[stage] = _Moment(wall, float(cpu), int(modules), int(memory) / 1024)
    if process.returncode:
        raise RuntimeError(f"{_PROGRAM.name} {argument} ended with status {process.returncode}.")
    return moments
