"""A request with SQLAlchemy's ORM: a session, a row by its key, a change, a commit. Over SQLAlchemy's pool and ours.

SQLAlchemy's pool resets no session, so the bar is for `session_reset=never`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.sqlalchemy import create_async_engine
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks.contestants import COMMAND_TIMEOUT, Borrower
from tests.benchmarks.figures import Figure, Samples, compare

MEASURE = "SQLAlchemy ORM, one request"
OWN_POOL = "SQLAlchemy's pool"
NEVER = "create_async_engine(GuardedPool), reset never"
ALWAYS = "create_async_engine(GuardedPool), reset always"


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "benchmark_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    visits: Mapped[int]


@asynccontextmanager
async def own_pool(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_plain_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"),
        pool_size=1,
        max_overflow=0,
        connect_args={"ssl": False, "command_timeout": COMMAND_TIMEOUT},
    )
    yield engine
    await engine.dispose()


@asynccontextmanager
async def guarded(url: str, session_reset: Literal["always", "never"]) -> AsyncIterator[AsyncEngine]:
    settings = DatabaseSettings(
        url=url, session_reset=session_reset, command_timeout_ms=round(COMMAND_TIMEOUT * 1000), pool_max=1
    )
    async with GuardedPool(settings) as pool:
        yield create_async_engine(pool)


def requester(engine: AsyncEngine) -> Borrower:
    sessions = async_sessionmaker(engine)

    async def once() -> None:
        async with sessions() as session, session.begin():
            account = await session.get_one(Account, 1)
            account.visits += 1

    return Borrower(once)


async def orm_requests(server: Cluster, *, rounds: int, batch: int) -> list[Figure]:
    """How long one request takes."""
    url = server.url()
    samples: Samples = {OWN_POOL: [], NEVER: [], ALWAYS: []}
    async with AsyncExitStack() as stack:
        engines = {
            OWN_POOL: await stack.enter_async_context(own_pool(url)),
            NEVER: await stack.enter_async_context(guarded(url, "never")),
            ALWAYS: await stack.enter_async_context(guarded(url, "always")),
        }
        async with AsyncSession(engines[OWN_POOL]) as session, session.begin():
            await (await session.connection()).run_sync(Base.metadata.create_all)
            session.add(Account(id=1, visits=0))
        names = list(samples)
        requesters = {name: requester(engines[name]) for name in names}
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                samples[name].append(await requesters[name](batch) * 1e6)
    return compare(MEASURE, samples, "µs", bars={NEVER: {OWN_POOL: 1.10}})
