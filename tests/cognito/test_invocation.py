"""A trigger answers in time, whatever the network and the callback do; the cancelled work ends later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from asyncdb_guard import DatabaseUnavailableError, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser, MemoryCache
from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.cognito.invocation import CallbackRunner
from tests.cognito.conftest import ENDLESS, MakePool, role_of
from tests.cognito.events import confirmation_event, id_claims, token_event
from tests.support.bound import at_rest

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
    from tests.support.eventually import Eventually

BUDGET = 0.3
BUSY = 1.0
"""Seconds that a busy machine may take longer. RESPONSE_MARGIN is 0.2, and COMMAND_TIMEOUT, which must not count, 3."""


class Callbacks:
    """What a callback may be at when the path goes dead, with no end and no error for anybody."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy

    async def statement(self, conn: Any, user: CognitoUser) -> None:
        self._proxy.deaf = True
        await conn.execute("INSERT INTO app_user (cognito_sub) VALUES ($1)", user.sub)

    async def own_transaction(self, conn: Any, user: CognitoUser) -> None:
        async with conn.transaction():
            await self.statement(conn, user)

    async def commit(self, conn: Any, user: CognitoUser) -> None:
        async with conn.transaction():
            await conn.execute("SELECT 1")
            self._proxy.deaf = True

    async def reset(self, conn: Any, user: CognitoUser) -> dict[str, str]:
        self._proxy.deaf = True
        return {"role": "admin"}


@pytest.mark.parametrize("trigger", ["load_claims", "provision_user"])
@pytest.mark.parametrize("at", ["statement", "own_transaction", "commit"])
async def test_a_path_that_dies_costs_no_more_than_the_budget(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, sub: str, trigger: str, at: str
) -> None:
    """Without this the ROLLBACK of the block alone would take the whole command timeout, 3 s."""
    pool = make_pool(url=url_via_tcp_proxy, handler_budget_ms=BUDGET * 1000)
    await pool.ping()
    callback = getattr(Callbacks(proxy), at)
    triggers = CognitoTriggers(pool, claims=callback, provision=callback)
    event = token_event() if trigger == "load_claims" else confirmation_event()
    began = time.monotonic()
    with pytest.raises(TriggerFailedError):
        await getattr(triggers, trigger)(event)
    assert time.monotonic() - began < BUDGET + BUSY


async def test_a_reset_that_hangs_takes_no_longer_and_the_claims_are_there(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    pool = make_pool(url=url_via_tcp_proxy, handler_budget_ms=BUDGET * 1000)
    await pool.ping()
    triggers = CognitoTriggers(pool, claims=Callbacks(proxy).reset)
    began = time.monotonic()
    assert id_claims(await triggers.load_claims(token_event())) == {"role": "admin"}
    assert time.monotonic() - began < BUDGET + BUSY


async def test_the_breaker_counts_work_that_fails_after_the_answer(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, sub: str, heard: list[str], eventually: Eventually
) -> None:
    pool = make_pool(url=url_via_tcp_proxy, handler_budget_ms=100, command_timeout_ms=250, breaker_fail_max=1)
    await pool.ping()
    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, provision=Callbacks(proxy).statement).provision_user(confirmation_event())
    assert "circuit_opened" not in heard
    await eventually(lambda: "circuit_opened" in heard)


@pytest.mark.parametrize("answer", [None, {"role": "late"}])
async def test_a_callback_that_ignores_its_cancellation_ends_without_the_trigger(
    make_pool: MakePool, sub: str, answer: Any
) -> None:
    over = asyncio.Event()

    async def stubborn(conn: Any, user: CognitoUser) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await over.wait()
        await over.wait()
        return answer

    pool = make_pool(handler_budget_ms=100)
    await pool.ping()
    await at_rest(pool)
    began = time.monotonic()
    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, claims=stubborn).load_claims(token_event())
    assert time.monotonic() - began < 0.1 + BUSY
    assert pool.stats()["lent"] == 1
    over.set()
    event = await CognitoTriggers(pool, claims=role_of).load_claims(token_event("2", sub=sub))
    assert id_claims(event) == {"role": "admin"}
    assert pool.stats()["connects"] == 1


async def test_an_answer_after_the_deadline_is_not_cached(make_pool: MakePool) -> None:
    async def late(conn: Any, user: CognitoUser) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return {"role": "late"}

    cache = MemoryCache()
    pool = make_pool(handler_budget_ms=50)
    await pool.ping()
    await at_rest(pool)
    triggers = CognitoTriggers(pool, claims=late, cache=cache)
    assert id_claims(await triggers.load_claims(token_event())) == {"role": "late"}
    assert len(cache) == 0


@pytest.mark.parametrize("trigger", ["load_claims", "provision_user"])
async def test_a_cancelled_caller_returns_at_once_and_its_statement_stops(
    pool: GuardedPool, trigger: str, role: str, observer: Observer, eventually: Eventually
) -> None:
    async def slow(conn: Any, user: CognitoUser) -> None:
        await conn.execute(ENDLESS)

    async def runs() -> bool:
        return any("pg_sleep" in session["query"] for session in await observer.sessions(user=role))

    triggers = CognitoTriggers(pool, claims=slow, provision=slow)
    event = token_event() if trigger == "load_claims" else confirmation_event()
    task = asyncio.create_task(getattr(triggers, trigger)(event))
    await eventually(runs)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: pool.stats()["idle"] == 1, within=2.0)  # the budget would end it in 4 s
    assert pool.stats()["connects"] == 1


@pytest.mark.parametrize("error", [asyncpg.AdminShutdownError("secret"), asyncpg.CannotConnectNowError("secret")])
async def test_what_the_server_says_of_itself_counts_as_unavailable(make_pool: MakePool, error: Exception) -> None:
    """A pooler may send it without ending the session."""

    async def callback(conn: Any, subject: str) -> None:
        raise error

    with pytest.raises(DatabaseUnavailableError, match=r"^The database failed during a statement\. Check") as caught:
        await CallbackRunner(make_pool()).run(callback, "", Deadline(5.0))
    assert caught.value.__cause__ is error
