"""A worker that does jobs from a table as soon as they are written. Run it with `python worker.py`.

Whoever writes a job also says `NOTIFY jobs`. SIGTERM or SIGINT ends the worker after the job that it is doing.
LAMBDA_DATABASE_URL says where the database is; LAMBDA_DATABASE_POOL_MAX must be 2 or more, as one session listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

import asyncpg

from asyncdb_guard import Connection, DatabaseUnavailableError, GuardedPool, PoolClosedError, log_events

PATIENCE = 30.0
"""Seconds for the job that is being done when the worker is told to stop."""

LOST = (OSError, asyncpg.InterfaceError, asyncpg.OperatorInterventionError, asyncpg.PostgresConnectionError)
"""How a session ends in the middle of a job. The server then rolls the job back, so that it is done again."""

TAKE = """
    DELETE FROM job WHERE id = (SELECT id FROM job ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING payload
"""


async def do_job(conn: Connection, payload: str) -> None:
    """The work itself, in the transaction that marks the job as done."""
    await conn.execute("INSERT INTO result (text) VALUES ($1)", payload.upper())


async def do_next_job(pool: GuardedPool) -> bool:
    """Do one job that nobody else is doing; return whether there was one."""
    async with pool.transaction() as conn:
        job = await conn.fetchrow(TAKE)
        if job is not None:
            await do_job(conn, job["payload"])
        return job is not None


async def do_all_jobs(pool: GuardedPool) -> None:
    """Do jobs until there is none, through outages of the database."""
    while True:
        try:
            if not await do_next_job(pool):
                return
        except DatabaseUnavailableError as error:
            await asyncio.sleep(error.retry_after or 1.0)
        except LOST:
            await asyncio.sleep(1.0)


async def work(pool: GuardedPool) -> None:
    """Do what is there, then wait for more. It ends when the pool is closed."""
    # What arrives between the two steps is not lost, as the first one listens already. Any note, also one that says
    # that others may have been missed, means the same: look into the table.
    async with pool.listen("jobs") as notes:
        await do_all_jobs(pool)
        async for _ in notes:
            await do_all_jobs(pool)


async def main() -> None:
    pool = GuardedPool(on_event=log_events)
    closing: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not closing:
            closing.append(loop.create_task(pool.close(timeout=PATIENCE)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(PoolClosedError):
        await work(pool)
    await asyncio.gather(*closing)


if __name__ == "__main__":
    asyncio.run(main())
