"""A web service with FastAPI: one pool, from its start to its end. Run it with `uvicorn app:app`.

LAMBDA_DATABASE_URL says where the database is, and LAMBDA_DATABASE_POOL_MAX how many sessions the service may hold.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from asyncdb_guard import Connection, DatabaseUnavailableError, GuardedPool, StatementTimeoutError, log_events


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The pool lives as long as the service. A wrong setting ends the start; a database that is down does not."""
    async with GuardedPool(on_event=log_events) as pool:
        app.state.pool = pool
        yield


def pool_of(request: Request) -> GuardedPool:
    pool: GuardedPool = request.app.state.pool
    return pool


Pool = Annotated[GuardedPool, Depends(pool_of)]


async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """One transaction for the request: rolled back if the endpoint raises."""
    async with pool.transaction() as connection:
        yield connection


# With this scope the COMMIT comes before the answer, so that nobody is told of what was not stored.
Transaction = Annotated[Connection, Depends(transaction, scope="function")]

app = FastAPI(lifespan=lifespan)


@app.exception_handler(DatabaseUnavailableError)
async def unavailable(request: Request, error: DatabaseUnavailableError) -> JSONResponse:
    """The open circuit, a failed connect, no connection in time: the client may try again."""
    seconds = 1 if error.retry_after is None else math.ceil(error.retry_after)
    return JSONResponse({"detail": "Please try again later."}, 503, {"Retry-After": str(seconds)})


@app.exception_handler(StatementTimeoutError)
async def too_slow(request: Request, error: StatementTimeoutError) -> JSONResponse:
    """A statement took longer than LAMBDA_DATABASE_COMMAND_TIMEOUT_MS, and was cancelled on the server."""
    return JSONResponse({"detail": "The database took too long."}, 504)


@app.exception_handler(asyncpg.UniqueViolationError)
async def conflict(request: Request, error: asyncpg.UniqueViolationError) -> JSONResponse:
    return JSONResponse({"detail": "There is one of this name already."}, 409)


@app.get("/items")
async def read_items(pool: Pool) -> list[str]:
    return [row["name"] for row in await pool.fetch("SELECT name FROM item ORDER BY id")]


@app.post("/items/{name}", status_code=201)
async def create_item(name: str, connection: Transaction) -> dict[str, int]:
    return {"id": await connection.fetchval("INSERT INTO item (name) VALUES ($1) RETURNING id", name)}


@app.get("/live")
async def live() -> dict[str, str]:
    """Whether the process works. It does without a database, so a restart of it would not help."""
    return {"status": "alive"}


@app.get("/ready")
async def ready(pool: Pool) -> dict[str, str]:
    """Whether requests can be answered: one round trip to the database, through the guard."""
    await pool.ping(timeout=1.0)
    return {"status": "ready", "circuit": pool.stats()["circuit"]}
