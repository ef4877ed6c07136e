"""LISTEN that lives: through idle times, losses and outages, and no longer than its `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from asyncdb_guard import (
    ConfigurationError,
    ConnectFailedError,
    DatabaseSettings,
    GuardedPool,
    Notification,
    NotificationsMissed,
)
from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.pool import feed, listening
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.support.bound import assert_accounts_balance, at_rest
from tests.support.pgbouncer import PgBouncer


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        yield pool


async def following(notes: Any) -> Any:
    return await asyncio.wait_for(anext(notes), 5)


async def notify(pool: GuardedPool, channel: str, payload: str = "") -> None:
    await pool.execute("SELECT pg_notify($1, $2)", channel, payload)


async def test_notifications_arrive_in_order(pool):
    async with pool.listen("jobs", "news") as notes:
        for channel, payload in (("jobs", "1"), ("news", ""), ("jobs", "2"), ("other", "3"), ("jobs", "4")):
            await notify(pool, channel, payload)
        seen = [await following(notes) for _ in range(4)]
    assert [(note.channel, note.payload) for note in seen] == [
        ("jobs", "1"),
        ("news", ""),
        ("jobs", "2"),
        ("jobs", "4"),
    ]
    assert isinstance(seen[0], Notification)
    assert seen[0].pid > 0


async def test_a_bare_async_for_listens_from_its_first_step_and_frees_its_place_at_the_end(pool, eventually, observer):
    seen = []

    async def read() -> None:
        async for note in pool.listen("jobs"):
            seen.append(note.payload)
            break

    reader = asyncio.create_task(read())
    await eventually(lambda: observer.fetchval("SELECT true FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))
    await notify(pool, "jobs", "x")
    await reader
    assert seen == ["x"]
    await at_rest(pool)
    async with pool.acquire(), pool.acquire():
        pass


@pytest.mark.parametrize("session_reset", ["always", "never"])
async def test_the_next_borrower_of_the_session_listens_to_nothing(url, session_reset):
    async with GuardedPool(DatabaseSettings(url=url, pool_max=1, session_reset=session_reset)) as pool:
        async with pool.listen("jobs"):
            pass
        assert await pool.fetch("SELECT pg_listening_channels()") == []
        assert await pool.fetchval("SHOW idle_session_timeout") != "0"
        await at_rest(pool)
        assert_accounts_balance(pool)


async def test_it_outlives_the_idle_timeout(url, server, role):
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2, idle_timeout_ms=100)) as pool:
        async with pool.listen("jobs") as notes:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(notes), 0.45)  # the server's own bound is 0.35 s
            await notify(pool, "jobs")
            assert isinstance(await following(notes), Notification)
        assert pool.stats()["replaced"] == 0


async def test_a_lost_session_is_replaced_and_the_reader_is_told(pool, server):
    async with pool.listen("jobs") as notes:
        await notify(pool, "jobs", "before")
        pid = server.psql("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        await asyncio.sleep(0.01)
        server.psql(f"SELECT pg_terminate_backend({pid}, 5000)")
        assert (await following(notes)).payload == "before"
        assert await following(notes) == NotificationsMissed()
        await notify(pool, "jobs", "after")
        assert (await following(notes)).payload == "after"
    await at_rest(pool)
    assert_accounts_balance(pool)


@pytest.mark.slow
async def test_it_comes_back_after_an_outage_through_the_breaker(monkeypatch):
    monkeypatch.setattr(listening, "_RETRY_AFTER", 0.02)
    with Cluster.start(16) as server:
        settings = DatabaseSettings(
            url=server.url(),
            pool_max=2,
            breaker_fail_max=1,
            breaker_reset_timeout_ms=50,
            breaker_reset_timeout_max_ms=50,
        )
        async with GuardedPool(settings) as pool, pool.listen("jobs") as notes:
            server.stop("immediate")
            waiting = asyncio.create_task(following(notes))
            await asyncio.sleep(0.1)
            assert pool.stats()["circuit"] != "closed"
            await asyncio.to_thread(server.restart)
            assert await waiting == NotificationsMissed()
            assert await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'") == 1


async def test_a_path_that_is_silently_dead_is_found(url_via_tcp_proxy, proxy, monkeypatch):
    monkeypatch.setattr(listening, "_CHECK_INTERVAL", 0.03)
    monkeypatch.setattr(listening, "_CHECK_TIMEOUT", 0.05)
    settings = DatabaseSettings(url=url_via_tcp_proxy, pool_max=2)
    async with GuardedPool(settings) as pool, pool.listen("jobs") as notes:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(notes), 0.15)  # checks that succeed
        connects = pool.stats()["connects"]
        proxy.silence_all()
        assert await following(notes) == NotificationsMissed()
        assert pool.stats()["connects"] > connects


async def ended(notes: Any) -> bool:
    """Whether the iteration is over."""
    try:
        await following(notes)
    except StopAsyncIteration:
        return True
    return False


@pytest.mark.parametrize("moment", ["at once", "after a while"])
async def test_it_ends_with_the_pool_which_does_not_wait_for_it(url, moment, eventually):
    pool = GuardedPool(DatabaseSettings(url=url, pool_max=2))
    reader = asyncio.create_task(ended(pool.listen("jobs")))
    await eventually(lambda: pool.stats()["lent"] == 1, every=0.0005)
    if moment == "after a while":
        await asyncio.sleep(0.02)
    began = asyncio.get_running_loop().time()
    await pool.close(timeout=5)
    assert await reader
    assert asyncio.get_running_loop().time() - began < 2


async def test_it_ends_with_a_pool_that_is_terminated(url):
    pool = GuardedPool(DatabaseSettings(url=url, pool_max=2))
    async with pool.listen("jobs") as notes:
        reader = asyncio.create_task(ended(notes))
        pool.terminate()
        assert await reader


@pytest.mark.slow
async def test_it_ends_with_a_pool_that_is_closed_during_an_outage(monkeypatch):
    monkeypatch.setattr(listening, "_RETRY_AFTER", 0.02)
    with Cluster.start(16) as server:
        pool = GuardedPool(DatabaseSettings(url=server.url(), pool_max=2))
        async with pool.listen("jobs") as notes:
            reader = asyncio.create_task(ended(notes))
            server.stop("immediate")
            await asyncio.sleep(0.05)
            await pool.close()
            assert await reader


async def test_it_ends_with_a_pool_that_is_closed_while_a_connect_hangs(url_via_tcp_proxy, proxy, eventually):
    pool = GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=2, connect_timeout_ms=5000))
    async with pool.listen("jobs") as notes:
        reader = asyncio.create_task(ended(notes))
        proxy.go_deaf()
        proxy.reset_all()
        await eventually(lambda: pool.stats()["waiting"] == 1)
        await pool.close(timeout=0.1)
        assert await reader


async def test_a_stricter_idle_timeout_of_the_role_is_kept(pool, server, role):
    server.psql(f"ALTER ROLE {role} SET idle_session_timeout = '30s'")
    async with pool.listen("jobs") as notes:
        assert await notes._acquisition.connection.fetchval("SHOW idle_session_timeout") == "30s"


async def test_a_session_that_is_lost_while_it_begins_to_listen_again_is_replaced(pool, server, monkeypatch):
    monkeypatch.setattr(listening, "_RETRY_AFTER", 0.01)
    async with pool.listen("jobs") as notes:
        listen, failures = LentConnection.add_listener, [asyncpg.ConnectionDoesNotExistError("lost")]

        async def lost_once(self: Any, *arguments: Any) -> None:
            if failures:
                raise failures.pop()
            await listen(self, *arguments)

        monkeypatch.setattr(LentConnection, "add_listener", lost_once)
        server.psql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        assert await following(notes) == NotificationsMissed()
        assert failures == []


async def test_a_reader_that_gives_up_waiting_may_come_back(pool):
    async with pool.listen("jobs") as notes:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(notes), 0.005)
        await notify(pool, "jobs", "x")
        assert (await following(notes)).payload == "x"


async def test_a_reader_that_gives_up_while_it_begins_to_listen_again_may_come_back(url_via_tcp_proxy, proxy):
    """It need not wait for the next check of the connection, and is told of what it has missed."""
    async with (
        GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, pool_max=2)) as pool,
        pool.listen("jobs") as notes,
    ):
        proxy.hang = True
        proxy.reset_all()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(notes), 0.1)
        proxy.hang = False
        assert await following(notes) == NotificationsMissed()
        await notify(pool, "jobs", "x")
        assert (await following(notes)).payload == "x"


async def test_a_slow_reader_is_told_what_it_has_missed(pool, monkeypatch, eventually):
    monkeypatch.setattr(feed, "_NOTES_MAX", 3)
    async with pool.listen("jobs") as notes:
        await pool.execute("SELECT pg_notify('jobs', n::text) FROM generate_series(1, 4) n")
        await eventually(lambda: notes._feed.notes and notes._feed.notes[-1].payload == "4")
        assert await following(notes) == NotificationsMissed()
        assert (await following(notes)).payload == "4"


async def test_a_pool_of_one_session_says_that_it_has_no_other(url, caplog):
    async with GuardedPool(DatabaseSettings(url=url, pool_max=1)) as pool, pool.listen("jobs"):
        assert ["holds the only session of this pool" in text for text in caplog.messages] == [True]


async def test_a_pool_with_room_says_nothing(pool, caplog):
    async with pool.listen("jobs"):
        assert caplog.messages == []


async def test_a_listener_added_by_hand_is_warned_of(pool, caplog):
    async with pool.acquire() as connection:
        for callback in (print, len):
            await connection.add_listener("jobs", callback)
        for callback in (print, len):
            await connection.remove_listener("jobs", callback)
    assert ["Use pool.listen(), which is exempt" in text for text in caplog.messages] == [True]


async def test_a_first_step_without_a_database_raises_as_acquire_does():
    async with GuardedPool(DatabaseSettings(url="postgresql://u@127.0.0.1:1/d", pool_max=2)) as pool:
        with pytest.raises(ConnectFailedError):
            await anext(pool.listen("jobs"))
        assert pool.stats()["lent"] == 0


def test_a_marker_is_like_any_other():
    assert {NotificationsMissed(), NotificationsMissed()} == {NotificationsMissed()}
    assert NotificationsMissed() != Notification("jobs", "", 1)
    assert repr(NotificationsMissed()) == "NotificationsMissed()"


def test_no_channel_is_no_listening():
    with pytest.raises(ConfigurationError, match="needs the name of at least one channel"):
        GuardedPool().listen()


async def test_behind_a_pooler_it_is_refused_before_anything_is_sent(url):
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2, proxy_profile=True)) as pool:
        with pytest.raises(ConfigurationError, match="needs a direct connection"):
            await anext(pool.listen("jobs"))
        await at_rest(pool)


@pytest.mark.debian
async def test_behind_a_pooler_that_no_setting_names_it_is_refused_too(server, role):
    with PgBouncer(server, {role: ""}) as bouncer:
        async with GuardedPool(DatabaseSettings(url=bouncer.url(role), pool_max=2)) as pool:
            with pytest.raises(ConfigurationError, match="needs a direct connection"):
                await anext(pool.listen("jobs"))
