"""One environment of the real fleet: a process with a pool of its own, which gets requests at random.

It says `{"ready": true}`, reads the instant of the end from stdin, and then says what became of each request.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

from asyncdb_guard import DatabaseSettings, GuardedPool


async def serve(url: str, rate: float) -> None:
    """Serve from `ready` to the end. Instants are those of the monotonic clock, which all processes share."""
    pool = GuardedPool(DatabaseSettings(url=url))  # and what the environment says
    await pool.ping()
    requests: list[tuple[float, bool]] = []

    async def request() -> None:
        came = time.monotonic()
        try:
            await pool.fetchval("SELECT 1")
        except Exception:
            requests.append((came, False))
        else:
            requests.append((came, True))

    say(ready=True)
    end = float(await asyncio.to_thread(sys.stdin.readline))
    async with asyncio.TaskGroup() as group:
        while True:
            pause = random.expovariate(rate)
            if time.monotonic() + pause > end:
                break
            await asyncio.sleep(pause)
            group.create_task(request())
    stats = pool.stats()
    await pool.close(timeout=1.0)
    say(requests=requests, failed_connects=stats["connect_failures"])


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
