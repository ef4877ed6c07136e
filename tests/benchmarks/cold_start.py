"""A process from its start to its first row: `cold_start.py guarded|by_hand|bare` prints how far it is, and when.

Run as a file, so that a process imports nothing but what it measures.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path


async def guarded() -> None:
    from asyncdb_guard import GuardedPool

    _mark("imported")
    pool = GuardedPool()
    _ = pool.settings
    _mark("configured")
    await pool.fetchval("SELECT 1")
    _mark("answered")
    await pool.close()


async def by_hand() -> None:
    from tests.benchmarks.by_hand import Database

    _mark("imported")
    database = Database()
    _mark("configured")
    await database.fetchval("SELECT 1")
    _mark("answered")
    await database.close()


async def bare() -> None:
    import asyncpg

    _mark("imported")
    url = os.environ["LAMBDA_DATABASE_URL"]
    _mark("configured")
    connection = await asyncpg.connect(url, ssl="disable", timeout=2.0, command_timeout=3.0)
    await connection.fetchval("SELECT 1")
    _mark("answered")
    await connection.close()


def _mark(stage: str) -> None:
    """One line: the stage, milliseconds of CPU since the process began, modules so far, peak memory so far in KiB."""
    cpu = time.process_time() * 1000
    sys.stdout.write(f"{stage} {cpu} {len(sys.modules)} {_peak_memory()}\n")
    sys.stdout.flush()


def _peak_memory() -> int:
    # Not ru_maxrss: across fork and exec it begins with the parent's.
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    _mark("started")
    asyncio.run({"guarded": guarded, "by_hand": by_hand, "bare": bare}[sys.argv[1]]())
