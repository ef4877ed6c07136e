"""One deadline for all that a trigger does, and the database's share in it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import DeadlineExceededError, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser
from asyncdb_guard.cognito.deadline import RESPONSE_MARGIN, BudgetSpentError, Deadline
from tests.cognito.conftest import ENDLESS, Context, MakePool, returning
from tests.cognito.events import confirmation_event, id_claims, token_event

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy


async def slow(conn: Any, user: CognitoUser) -> None:
    await conn.execute(ENDLESS)


async def waiting_elsewhere(conn: Any, user: CognitoUser) -> None:
    await conn.execute("SELECT 1")
    await asyncio.Event().wait()


@pytest.mark.parametrize("trigger", ["load_claims", "provision_user"])
@pytest.mark.parametrize("callback", [slow, waiting_elsewhere])
async def test_a_slow_callback_ends_with_the_handler_budget(make_pool: MakePool, callback: Any, trigger: str) -> None:
    triggers = CognitoTriggers(make_pool(handler_budget_ms=300), claims=callback, provision=callback)
    event = token_event() if trigger == "load_claims" else confirmation_event()
    began = time.monotonic()
    with pytest.raises(TriggerFailedError):
        await getattr(triggers, trigger)(event)
    assert 0.25 < time.monotonic() - began < 2.0


async def test_what_lambda_leaves_is_the_bound_if_it_is_less(make_pool: MakePool) -> None:
    triggers = CognitoTriggers(make_pool(), claims=slow)
    began = time.monotonic()
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event(), Context(300 + RESPONSE_MARGIN * 1000))
    assert 0.25 < time.monotonic() - began < 2.0


async def test_a_deaf_database_takes_no_longer_than_the_budget(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    proxy.hang = True
    triggers = CognitoTriggers(make_pool(url=url_via_tcp_proxy, handler_budget_ms=300), claims=returning({}))
    began = time.monotonic()
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event())
    assert time.monotonic() - began < 1.5


async def test_no_time_left_asks_the_database_for_nothing(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    pool = make_pool(url=url_via_tcp_proxy, session_reset="never")
    await pool.ping()
    triggers = CognitoTriggers(pool, claims=slow, provision=slow)
    sent = proxy.client_bytes
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event(), Context(50))
    with pytest.raises(TriggerFailedError):
        await triggers.provision_user(confirmation_event(), Context(0))
    assert proxy.client_bytes == sent


async def test_time_spent_in_the_database_opens_the_circuit(make_pool: MakePool, heard: list[str]) -> None:
    triggers = CognitoTriggers(make_pool(handler_budget_ms=200, breaker_fail_max=2), claims=slow)
    for _ in range(2):
        with pytest.raises(TriggerFailedError):
            await triggers.load_claims(token_event())
    assert "circuit_opened" in heard


async def test_time_that_was_short_from_the_start_does_not(make_pool: MakePool, heard: list[str]) -> None:
    triggers = CognitoTriggers(make_pool(breaker_fail_max=1), claims=slow)
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event(), Context(500 + RESPONSE_MARGIN * 1000))
    assert "connection_opened" in heard
    assert "circuit_opened" not in heard


async def test_time_spent_elsewhere_does_not(make_pool: MakePool, heard: list[str]) -> None:
    triggers = CognitoTriggers(make_pool(handler_budget_ms=50, breaker_fail_max=2), claims=waiting_elsewhere)
    for _ in range(4):
        with pytest.raises(TriggerFailedError):
            await triggers.load_claims(token_event())
    assert "circuit_opened" not in heard


async def test_followers_keep_their_own_deadline(make_pool: MakePool, sub: str) -> None:
    """The first caller has little time and fails; the one that waited behind it loads anew."""
    asked = 0

    async def claims(conn: Any, user: CognitoUser) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return {"asked": asked}

    triggers = CognitoTriggers(make_pool(), claims=claims)
    first = asyncio.create_task(triggers.load_claims(token_event("2", sub="s"), Context(100 + RESPONSE_MARGIN * 1000)))
    await asyncio.sleep(0)
    second = await triggers.load_claims(token_event("2", sub="s"))
    assert id_claims(second) == {"asked": 2}
    with pytest.raises(TriggerFailedError):
        await first


async def test_a_follower_does_not_wait_beyond_its_own_deadline(make_pool: MakePool) -> None:
    triggers = CognitoTriggers(make_pool(handler_budget_ms=1000), claims=waiting_elsewhere)
    first = asyncio.create_task(triggers.load_claims(token_event("2", sub="s")))
    await asyncio.sleep(0)
    began = time.monotonic()
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event("2", sub="s"), Context(100 + RESPONSE_MARGIN * 1000))
    assert time.monotonic() - began < 0.8
    with pytest.raises(TriggerFailedError):
        await first


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [(1200, 1.0), (10_000, 4.0), (0, 0.0), (-5, 0.0), (None, 4.0), ("soon", 4.0), (True, 4.0), (1200.0, 1.0)],
)
async def test_the_deadline_is_the_nearer_of_budget_and_context(remaining: Any, expected: float) -> None:
    assert Deadline(4.0, Context(remaining)).remaining == pytest.approx(expected, abs=0.05)


async def test_lambdas_milliseconds_are_read_exactly() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    remaining = Deadline(4.0, Context(4100)).remaining
    assert remaining <= 3.9 <= remaining + (loop.time() - before) + 0.001


class Broken:
    """A context that raises."""

    def get_remaining_time_in_millis(self) -> int:
        raise RuntimeError("no deadline here")


@pytest.mark.parametrize("context", [None, object(), "context", Broken()])
async def test_any_context_will_do(context: Any) -> None:
    assert Deadline(4.0, context).remaining == pytest.approx(4.0, abs=0.05)


async def test_a_result_comes_through_and_errors_too(pool: GuardedPool) -> None:
    async def result() -> int:
        return 5

    async def own_timeout() -> None:
        raise TimeoutError("mine")

    deadline = Deadline(1.0)
    assert await deadline.bound(result()) == 5
    with pytest.raises(TimeoutError, match="mine"):
        await deadline.bound(own_timeout())


async def test_the_deadline_blames_a_running_statement_only(pool: GuardedPool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(DeadlineExceededError) as caught:
            await Deadline(0.05).bound(conn.execute(ENDLESS), lambda: conn.in_statement)
        assert caught.value.__context__ is None
    with pytest.raises(BudgetSpentError):
        await Deadline(0.05).bound(asyncio.Event().wait())


async def test_a_follower_with_more_time_waits_for_a_connection_of_its_own(make_pool: MakePool, sub: str) -> None:
    """The first caller's time ends in the queue, which says nothing about the second one's."""

    async def claims(conn: Any, user: CognitoUser) -> Any:
        return {"answered": "yes"}

    pool = make_pool()
    triggers = CognitoTriggers(pool, claims=claims)
    async with pool.acquire():
        first = asyncio.create_task(
            triggers.load_claims(token_event("2", sub="s"), Context(100 + RESPONSE_MARGIN * 1000))
        )
        await asyncio.sleep(0)
        second = asyncio.create_task(triggers.load_claims(token_event("2", sub="s")))
        with pytest.raises(TriggerFailedError):
            await first
    assert id_claims(await second) == {"answered": "yes"}


async def test_time_spent_in_the_database_by_a_task_group_opens_the_circuit(
    make_pool: MakePool, heard: list[str]
) -> None:
    async def claims(conn: Any, user: CognitoUser) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(conn.execute(ENDLESS))

    triggers = CognitoTriggers(make_pool(handler_budget_ms=100, breaker_fail_max=1), claims=claims)
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event("2", sub="s"))
    assert "circuit_opened" in heard


async def test_a_full_pool_is_logged_as_one_if_there_is_time_left(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(connect_timeout_ms=300)
    async with pool.acquire():
        with pytest.raises(TriggerFailedError):
            await CognitoTriggers(pool, claims="SELECT 1 AS one").load_claims(token_event("2", sub="s"))
    assert "load_claims failed: No connection became free within 0." in caplog.text
