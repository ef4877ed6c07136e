"""The public API as type checkers see it. Checked by `nox -s types`, never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, assert_type

from sqlalchemy.ext.asyncio import AsyncEngine

from asyncdb_guard import (
    CircuitOpenError,
    CircuitState,
    ConnectFailedError,
    Connection,
    DatabaseSettings,
    DatabaseUnavailableError,
    Event,
    EventName,
    GuardedPool,
    Listener,
    Notification,
    NotificationsMissed,
    PoolStats,
    TriggerEventError,
    TriggerFailedError,
    log_events,
)
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser
from asyncdb_guard.events import ConnectionClosed, GrowthPaused
from asyncdb_guard.otel import instrument
from asyncdb_guard.runtime import lambda_handler
from asyncdb_guard.sqlalchemy import create_async_engine

pool = GuardedPool()
same = GuardedPool(DatabaseSettings(pool_max=5, url="postgresql://u@h/d"), on_event=print)


def hear(event: Event) -> None:
    assert_type(event.name, EventName)
    if isinstance(event, GrowthPaused):
        assert_type(event.seconds, float)
    if isinstance(event, ConnectionClosed):
        assert_type(event.reason, str)


def hear_nothing() -> None:
    pass


opened: EventName = "circuit_opened"
unknown: EventName = "circuit_open"  # type: ignore[assignment]  # no such event
listener: Listener = hear
listeners: list[Listener] = [hear, print, log_events]
heard = GuardedPool(on_event=[hear, print])
also_heard = GuardedPool(on_event=listeners)
pool.events.add(listener)
unheard = GuardedPool(on_event=hear_nothing)  # type: ignore[arg-type]  # takes no event


class Loose(DatabaseSettings):  # type: ignore[misc]  # final
    pass


async def use() -> None:
    async with GuardedPool() as entered:
        assert_type(entered, GuardedPool)
    async with pool.acquire(timeout=0.5) as connection:
        assert_type(connection, Connection)
        await connection.execute("SELECT 1")
    async with pool.transaction(isolation="serializable", readonly=True) as connection:
        await connection.fetch("SELECT $1::int", 1)
    for row in await pool.fetch("SELECT 1 AS one"):
        print(row["one"])
    first = await pool.fetchrow("SELECT 1")
    if first is not None:
        print(first[0])
    assert_type(await pool.fetchval("SELECT 1"), Any)
    assert_type(await pool.execute("SELECT 1"), str)
    await pool.executemany("SELECT $1::int", [(1,), (2,)])
    await pool.ping()
    async for note in pool.listen("jobs"):
        assert_type(note, Notification | NotificationsMissed)
    assert_type(create_async_engine(pool, echo=True), AsyncEngine)
    instrument(pool, pool_name="jobs", spans=True).uninstrument()
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.stats()["waiting"], int)
    assert_type(pool.stats()["wait_ms"], float)
    assert_type(pool.stats()["circuit"], CircuitState)
    state: Literal["closed", "open", "half_open"] = pool.stats()["circuit"]
    print(state)
    await pool.disconnect(timeout=1.0)
    await pool.close(timeout=1.0)
    pool.terminate()


def errors(error: Exception) -> float | None:
    if isinstance(error, DatabaseUnavailableError):
        return error.retry_after
    if isinstance(error, CircuitOpenError | ConnectFailedError | TriggerFailedError | TriggerEventError):
        return None
    raise error


async def claims(connection: Connection, user: CognitoUser) -> dict[str, object]:
    assert_type(user.sub, str)
    return {"role": await connection.fetchval("SELECT 1")}


async def provision(connection: Connection, user: CognitoUser) -> None:
    await connection.execute("SELECT 1")


triggers = CognitoTriggers(pool, claims=claims, provision=provision, on_unavailable="stale")
with_sql = CognitoTriggers(pool, claims="SELECT 1 AS one", provision="SELECT $1, $2")
pre_token: Callable[..., Any] = lambda_handler(triggers.load_claims)
post_confirmation: Callable[..., Any] = lambda_handler(triggers.provision_user)
