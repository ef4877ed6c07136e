"""A web service with FastAPI and SQLAlchemy's ORM over the guarded pool. Run it with `uvicorn app:app`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asyncdb_guard import DatabaseUnavailableError, GuardedPool, log_events
from asyncdb_guard.sqlalchemy import create_async_engine


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One pool and one engine, which live as long as the service. The pool is what has to be closed."""
    async with GuardedPool(on_event=log_events) as pool:
        app.state.pool = pool
        app.state.sessions = async_sessionmaker(create_async_engine(pool))
        yield


async def session_of(request: Request) -> AsyncIterator[AsyncSession]:
    """One session and one transaction for the request: rolled back if the endpoint raises."""
    async with request.app.state.sessions.begin() as session:
        yield session


# With this scope the COMMIT comes before the answer, so that nobody is told of what was not stored.
Session = Annotated[AsyncSession, Depends(session_of, scope="function")]

app = FastAPI(lifespan=lifespan)


@app.exception_handler(DatabaseUnavailableError)
async def unavailable(request: Request, error: DatabaseUnavailableError) -> JSONResponse:
    """The open circuit, a failed connect, no connection in time: the client may try again."""
    seconds = 1 if error.retry_after is None else math.ceil(error.retry_after)
    return JSONResponse({"detail": "Please try again later."}, 503, {"Retry-After": str(seconds)})


@app.exception_handler(DBAPIError)
async def lost(request: Request, error: DBAPIError) -> JSONResponse:
    """A session that was lost in the middle of a request: whether it was committed is unknown."""
    if not error.connection_invalidated:
        raise error
    return JSONResponse({"detail": "The database was lost. Check before you try again."}, 503)


@app.exception_handler(IntegrityError)
async def conflict(request: Request, error: IntegrityError) -> JSONResponse:
    return JSONResponse({"detail": "There is one of this name already."}, 409)


@app.get("/items")
async def read_items(session: Session) -> list[str]:
    return list(await session.scalars(select(Item.name).order_by(Item.id)))


@app.post("/items/{name}", status_code=201)
async def create_item(name: str, session: Session) -> dict[str, int]:
    item = Item(name=name)
    session.add(item)
    await session.flush()
    return {"id": item.id}


@app.get("/live")
async def live() -> dict[str, str]:
    """Whether the process works. It does without a database, so a restart of it would not help."""
    return {"status": "alive"}


@app.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Whether requests can be answered: one round trip to the database, through the guard."""
    pool: GuardedPool = request.app.state.pool
    await pool.ping(timeout=1.0)
    return {"status": "ready", "circuit": pool.stats()["circuit"]}
