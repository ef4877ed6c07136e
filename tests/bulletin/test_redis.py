"""The bulletin in a real Redis: what it gives, what it costs, and that a sick one is no worse than none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncdb_guard import (
    CircuitOpenError,
    ConfigurationError,
    ConnectFailedError,
    DatabaseSettings,
    GuardedPool,
    GuardError,
)
from asyncdb_guard.bulletin import open_bulletin
from asyncdb_guard.bulletin.board import Bulletin, database_key
from asyncdb_guard.connect.redis.opening import create_client
from asyncdb_guard.news import News
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.bulletin.conftest import MakeEnvironment, fail_trials, go_down, tell_of_others, trip
from tests.support.calls import served
from tests.support.eventually import Eventually
from tests.support.eventually import eventually as wait_for
from tests.support.redis import Authority, RedisCluster, RedisServer

pytestmark = pytest.mark.debian

Later = Callable[[float], None]

LONGEST = 5.0
"""Seconds: the default of BREAKER_RESET_TIMEOUT_MAX_MS."""


async def retry_after(pool: GuardedPool) -> float:
    with pytest.raises(CircuitOpenError) as refused:
        await pool.ping()
    return refused.value.retry_after or 0.0


def keys(redis: RedisServer) -> dict[str, str]:
    """The keys by their words."""
    return {key.rpartition(":")[2]: key for key in redis.command("KEYS", "*") if key}


def evals(redis: RedisServer) -> int:
    """How often the store was asked or told."""
    stats = redis.command("INFO", "commandstats")
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in stats if line.startswith("cmdstat_eval:"))


# What it gives


async def test_all_return_soon_after_the_first_however_long_their_periods_are(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later, eventually: Eventually
) -> None:
    first, other = (make_environment(fleet_url=redis.url) for _ in range(2))
    await asyncio.gather(first.ping(), other.ping())
    go_down(proxy)
    await trip(first)
    await trip(other)
    tell_of_others(redis, other)
    await fail_trials(other, later, 8)
    assert LONGEST < await retry_after(other) <= 4 * LONGEST
    proxy.refuse = False
    await eventually(lambda: served(first))
    await eventually(lambda: served(other), within=1.0, but="the other is back within the first period")
    assert set(keys(redis)) == {"last", "recovery"}


async def test_without_a_store_the_longest_period_is_the_setting(
    make_environment: MakeEnvironment, proxy: TcpProxy, later: Later
) -> None:
    pool = make_environment()
    await pool.ping()
    go_down(proxy)
    await trip(pool)
    await fail_trials(pool, later, 8)
    assert LONGEST / 2 <= await retry_after(pool) <= LONGEST


async def test_a_new_environment_opens_after_one_failure_where_three_others_have(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer
) -> None:
    go_down(proxy)
    for others in (1, 2, 3):
        await trip(make_environment(fleet_url=redis.url))
        new = make_environment(fleet_url=redis.url)
        accepted = proxy.accepted
        with pytest.raises(Exception):  # noqa: B017, PT011 -- its own error
            await new.ping()
        with pytest.raises(CircuitOpenError if others == 3 else Exception):
            await new.ping()
        assert (proxy.accepted - accepted == 1) is (others == 3)


async def test_a_partition_that_one_environment_sees_closes_the_door_for_nobody_else(
    make_environment: MakeEnvironment, url: str, proxy: TcpProxy, redis: RedisServer, later: Later
) -> None:
    """All go to one database, this one by a path of its own; a bulletin knows databases by where they are reached."""
    with TcpProxy(proxy.target[0], proxy.target[1]) as path:
        go_down(path)
        cut_off = GuardedPool(DatabaseSettings(url=path.url(url), fleet_url=redis.url, breaker_reset_timeout_ms=200))
        await trip(cut_off)
        await fail_trials(cut_off, later, 5)
        await cut_off.close()
    (key,) = (name for word, name in keys(redis).items() if word == "open")
    assert redis.command("ZCARD", key) == ["1"]  # however often it has opened
    new = make_environment(fleet_url=redis.url)
    redis.command("RENAME", key, name_for(new, "open"))
    go_down(proxy)
    for _ in range(2):
        with pytest.raises(Exception) as failed:  # noqa: PT011
            await new.ping()
        assert not isinstance(failed.value, CircuitOpenError)
    assert new.stats()["circuit"] == "closed"


def name_for(pool: GuardedPool, word: str) -> str:
    return f"asyncdb_guard:fleet:1:{{{database_key(pool.settings)}}}:{word}"


# What it costs


async def test_ten_thousand_healthy_borrows_cost_the_store_nothing(
    make_environment: MakeEnvironment, redis: RedisServer
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        pool = make_environment(fleet_url=f"redis://{path.host}:{path.port}", session_reset="never")
        for _ in range(10_000):
            async with pool.acquire():
                pass
        assert path.accepted == 0
    assert evals(redis) == 0


async def test_news_are_one_round_trip_and_are_asked_for_once_by_many_who_are_refused(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer
) -> None:
    long = {"breaker_reset_timeout_ms": 60_000, "breaker_reset_timeout_max_ms": 60_000}
    pool = make_environment(fleet_url=redis.url, **long)
    await pool.ping()
    go_down(proxy)
    await trip(pool)
    before = evals(redis)
    assert before <= 3  # before its second and its third attempt, and then it told
    began = time.monotonic()
    await asyncio.gather(*(retry_after(pool) for _ in range(500)))
    for _ in range(20):
        await retry_after(pool)
    assert evals(redis) - before <= 1 + (time.monotonic() - began) / 0.1


async def test_what_it_keeps_shows_no_name_and_has_an_end(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, role: str, eventually: Eventually
) -> None:
    pool = make_environment(fleet_url=redis.url)
    await pool.ping()
    go_down(proxy)
    await trip(pool)
    proxy.refuse = False
    assert set(keys(redis)) == {"open"}
    (witness,) = redis.command("ZRANGE", keys(redis)["open"], "0", "-1")
    assert await eventually(lambda: served(pool))
    await pool._core.settle(1.0)
    found = keys(redis)
    assert 0 < int(redis.command("PTTL", found["last"])[0]) <= 5000
    assert 5000 < int(redis.command("PTTL", found["recovery"])[0]) <= 60_000
    for text in (*found.values(), witness, *redis.command("GET", found["recovery"])):
        assert not any(word in text for word in (proxy.host, str(proxy.port), role, "postgres"))


async def test_who_has_eight_witnesses_adds_none_and_the_oldest_go(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer
) -> None:
    go_down(proxy)
    pool = make_environment(fleet_url=redis.url)
    for number in range(12):
        bulletin = open_bulletin(pool.settings)
        assert bulletin is not None
        bulletin.tell_open()
        await bulletin.settle(1.0)
        bulletin.close()
        assert redis.command("ZCARD", name_for(pool, "open")) == [str(min(number + 1, 8))]
    bulletin = open_bulletin(pool.settings)
    assert bulletin is not None
    news = await bulletin.look(1.0)
    assert news is not None
    assert news.open == 8
    before = evals(redis)
    bulletin.tell_open()
    assert not bulletin.telling
    assert evals(redis) == before
    bulletin.close()


async def test_a_success_that_was_just_told_is_not_told_again(
    make_environment: MakeEnvironment, redis: RedisServer
) -> None:
    settings = make_environment(fleet_url=redis.url).settings
    first, other = open_bulletin(settings), open_bulletin(settings)
    assert first is not None
    assert other is not None
    first.tell_recovered()
    await first.settle(1.0)
    (name,) = redis.command("GET", keys(redis)["recovery"])
    news = await other.look(1.0)
    assert news is not None
    assert news.recovery == name
    other.tell_recovered()
    assert not other.telling
    redis.command("PEXPIRE", keys(redis)["last"], "3000")  # two seconds later
    await asyncio.sleep(other.FRESH)
    await other.look(1.0)
    other.tell_recovered()
    await other.settle(1.0)
    assert int(redis.command("PTTL", keys(redis)["last"])[0]) > 3000
    assert redis.command("GET", keys(redis)["recovery"]) == [name]  # the same one goes on
    for bulletin in (first, other):
        bulletin.close()


async def test_a_pool_that_is_closed_leaves_no_connection_to_the_store(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, eventually: Eventually
) -> None:
    pools = [make_environment(fleet_url=redis.url) for _ in range(2)]
    go_down(proxy)
    for pool in pools:
        await trip(pool)
    assert len(redis.command("CLIENT", "LIST")) == 3  # with the one that asks
    await pools[0].close()
    pools[1].terminate()
    await eventually(lambda: len(redis.command("CLIENT", "LIST")) == 1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # told of any process with threads
def test_a_forked_child_has_a_connection_and_a_name_of_its_own(redis: RedisServer) -> None:
    bulletin = open_bulletin(DatabaseSettings(url="postgresql://someone@127.0.0.1/app", fleet_url=redis.url))
    assert bulletin is not None

    def tell() -> bool:
        bulletin.tell_open()
        end = time.monotonic() + 5
        while bulletin.telling and time.monotonic() < end:
            time.sleep(0.005)
        return not bulletin.telling

    assert tell()
    child = os.fork()
    if not child:
        done = False
        try:
            done = tell()
        finally:
            os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0
    news = asyncio.run(bulletin.look(1.0))
    assert news is not None
    assert news.open == 2
    bulletin.close()


async def test_before_a_freeze_what_is_being_told_is_waited_for(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        pool = make_environment(fleet_url=f"redis://{path.host}:{path.port}")
        await pool.ping()
        go_down(proxy)
        path.deaf = True
        while pool.stats()["circuit"] != "open":
            with pytest.raises(Exception):  # noqa: B017, PT011
                await pool.ping()
        assert pool._core.interrupted
        await pool._core.settle(0.01)
        assert pool._core.interrupted
        path.deaf = False
        await pool._core.settle(1.0)
        assert not pool._core.interrupted


# A sick one


async def local_policy_holds(pool: GuardedPool, proxy: TcpProxy, later: Later, redis: RedisServer | None) -> None:
    """The periods are the local ones, and nobody waits for the store for longer than 50 ms."""
    go_down(proxy)
    await trip(pool)
    waited: list[float] = []
    for _ in range(8):
        if redis is not None:
            redis.command("FLUSHALL")
        later(50.0)
        began = time.monotonic()
        with pytest.raises(Exception) as failed:  # noqa: PT011
            await pool.ping()
        waited.append(time.monotonic() - began)
        assert not isinstance(failed.value, CircuitOpenError)
        await pool._core.settle(0.1)
    if redis is not None:
        redis.command("FLUSHALL")
    assert statistics.median(waited) < 0.05 + 0.4  # the second part is for a busy machine
    assert LONGEST / 2 - 1.0 <= await retry_after(pool) <= LONGEST


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return record.getMessage()


async def test_a_store_that_nobody_listens_at(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    redis.kill()
    pool = make_environment(fleet_url=redis.url)
    await pool.ping()
    later_but_within_a_minute = lambda seconds: later(min(seconds, 6.0))  # noqa: E731
    await local_policy_holds(pool, proxy, later_but_within_a_minute, None)
    assert one_warning(caplog).startswith("The fleet store is unavailable (ConnectionError). Check the server")
    assert "fleet_url (LAMBDA_DATABASE_FLEET_URL)" in one_warning(caplog)
    assert str(redis.port) not in caplog.text


async def test_a_store_that_does_not_answer(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later,
    caplog: pytest.LogCaptureFixture, eventually: Eventually,
) -> None:  # fmt: skip
    with TcpProxy(redis.host, redis.port) as path:
        path.deaf = True
        pool = make_environment(fleet_url=f"redis://{path.host}:{path.port}")
        await pool.ping()
        await local_policy_holds(pool, proxy, lambda seconds: later(min(seconds, 5.5)), None)
        await eventually(lambda: "The fleet store did not answer in time (TimeoutError)." in caplog.text)
        path.deaf = False
        path.reset_all()


async def looked_at(make_environment: MakeEnvironment, path: TcpProxy) -> tuple[Bulletin, News]:
    """A bulletin that has looked once, so long ago that the next look asks the store; and what it saw."""
    bulletin = open_bulletin(make_environment(fleet_url=f"redis://{path.host}:{path.port}").settings)
    assert bulletin is not None
    news = await wait_for(lambda: bulletin.look(1.0))
    assert news is not None
    await asyncio.sleep(bulletin.FRESH)
    return bulletin, news


async def test_a_store_that_takes_longer_than_a_caller_waits(
    make_environment: MakeEnvironment, redis: RedisServer, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        bulletin, _ = await looked_at(make_environment, path)
        path.deaf = True
        began = time.monotonic()
        assert [await bulletin.look(1.0) for _ in range(5)] == [None] * 5
        assert time.monotonic() - began < 0.09  # the first waits; the others know
        path.deaf = False
        await eventually(lambda: "did not answer in time (TimeoutError)" in caplog.text)
        assert await bulletin.look(1.0) is None  # left alone for a second
        bulletin.close()


async def test_one_answer_that_comes_too_late_is_no_sickness(
    make_environment: MakeEnvironment, redis: RedisServer, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        bulletin, first = await looked_at(make_environment, path)
        path.latency = 0.04  # each way
        assert await bulletin.look(1.0) is None
        path.latency = 0.0
        late = await eventually(lambda: bulletin.look(1.0), within=0.5)
        assert late.at > first.at
        assert not caplog.records
        bulletin.close()


async def test_a_store_that_always_answers_too_late_is_left_alone(
    make_environment: MakeEnvironment, redis: RedisServer, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        bulletin, _ = await looked_at(make_environment, path)
        path.latency = 0.04  # each way
        assert await bulletin.look(1.0) is None
        await eventually(lambda: bulletin._late)
        await asyncio.sleep(bulletin.FRESH)
        assert await bulletin.look(1.0) is None
        await eventually(lambda: "failed with TimeoutError" in caplog.text, within=0.4)
        bulletin.close()


async def test_a_store_that_is_killed_in_the_middle_of_an_outage_and_comes_back(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pool = make_environment(fleet_url=redis.url)
    await pool.ping()
    go_down(proxy)
    await trip(pool)
    tell_of_others(redis, pool)
    await fail_trials(pool, later, 8)
    assert await retry_after(pool) > LONGEST
    redis.kill()
    await asyncio.sleep(0.1)
    assert await retry_after(pool) <= LONGEST
    await wait_for(lambda: "The fleet store is unavailable" in caplog.text)  # a thread writes it
    redis.start()
    tell_of_others(redis, pool)
    later(6.0)
    with contextlib.suppress(CircuitOpenError, ConnectFailedError):
        await pool.ping()
    later(21.0)
    with pytest.raises(ConnectFailedError):
        await pool.ping()
    assert await retry_after(pool) > LONGEST


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def test_a_store_whose_certificate_nobody_trusts(
    make_environment: MakeEnvironment, proxy: TcpProxy, later: Later, authority: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with authority.server("no") as redis:
        pool = make_environment(fleet_url=f"rediss://{redis.host}:{redis.port}")
        await pool.ping()
        await local_policy_holds(pool, proxy, lambda seconds: later(min(seconds, 5.5)), None)
        assert "has a certificate that is not trusted" in one_warning(caplog)
        assert "Set fleet_ssl_root_cert (LAMBDA_DATABASE_FLEET_SSL_ROOT_CERT) to its CA" in one_warning(caplog)


async def test_a_store_of_ones_own_authority_that_asks_for_a_certificate(
    make_environment: MakeEnvironment, authority: Authority
) -> None:
    with authority.server("yes") as redis:
        trust = {"fleet_url": f"valkeys://{redis.host}:{redis.port}", "fleet_ssl_root_cert": authority.ca}
        one = {"fleet_ssl_cert": authority.both}
        two = {"fleet_ssl_cert": authority.cert, "fleet_ssl_key": authority.key}
        for files in (one, two):
            bulletin = open_bulletin(make_environment(**trust, **files).settings)
            assert bulletin is not None
            assert (await bulletin.probe()).open == 0
            bulletin.close()
        bulletin = open_bulletin(make_environment(**trust).settings)
        assert bulletin is not None
        with pytest.raises(GuardError, match="the client certificate"):
            await bulletin.probe()


async def test_a_file_of_no_use_is_a_fault_of_the_settings(make_environment: MakeEnvironment) -> None:
    pool = make_environment(fleet_url="rediss://fleet.example", fleet_ssl_root_cert="/nowhere/ca.pem")
    with pytest.raises(ConfigurationError, match=r"FLEET_SSL_ROOT_CERT\) must name a readable PEM file"):
        await pool.ping()


async def test_a_cluster_is_recognised_by_its_answers(
    make_environment: MakeEnvironment, proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RedisCluster(tmp_path) as cluster:
        pools = [make_environment(fleet_url=node.url) for node in cluster.nodes]  # one of them has not got the keys
        for pool in pools:
            await pool.ping()
        go_down(proxy)
        for pool in pools:
            await trip(pool)
        for pool in pools:
            bulletin = open_bulletin(pool.settings)
            assert bulletin is not None
            assert (await bulletin.probe()).open == 2
            bulletin.close()
    assert "The fleet store is a cluster." in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_store_that_is_full(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    redis.command("CONFIG", "SET", "maxmemory", "1")
    pool = make_environment(fleet_url=redis.url)
    await pool.ping()
    await local_policy_holds(pool, proxy, lambda seconds: later(min(seconds, 5.5)), None)
    assert "has no memory left for new entries (OOM)" in one_warning(caplog)


async def test_a_store_that_evicts_all_it_is_told(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later
) -> None:
    pool = make_environment(fleet_url=redis.url)
    await pool.ping()
    await local_policy_holds(pool, proxy, later, redis)


@pytest.mark.parametrize(
    ("word", "lie"),
    [
        ("last", ("SET", "1")),  # without an end
        ("last", ("SET", "1", "PX", "99999999")),  # from tomorrow
        ("recovery", ("SET", "x" * 100, "PX", "50000")),
        ("recovery", ("LPUSH", "x")),
        ("open", ("SET", "x")),
    ],
)
async def test_a_store_that_holds_something_else(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer, later: Later,
    caplog: pytest.LogCaptureFixture, word: str, lie: tuple[str, ...],
) -> None:  # fmt: skip
    pool = make_environment(fleet_url=redis.url)
    await pool.ping()
    command, *rest = lie
    redis.command(command, name_for(pool, word), *rest)
    await local_policy_holds(pool, proxy, lambda seconds: later(min(seconds, 5.5)), None)
    assert one_warning(caplog)


async def test_a_recovery_that_nobody_has_seen_costs_one_trial_more(
    make_environment: MakeEnvironment, proxy: TcpProxy, redis: RedisServer
) -> None:
    pool = make_environment(fleet_url=redis.url, breaker_reset_timeout_ms=5000)
    await pool.ping()
    go_down(proxy)
    await trip(pool)
    accepted = proxy.accepted
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        redis.command("SET", name_for(pool, "last"), "1", "PX", "5000")
        redis.command("SET", name_for(pool, "recovery"), "x", "PX", "1")
        with pytest.raises(Exception):  # noqa: B017, PT011
            await pool.ping()
    assert proxy.accepted - accepted <= 1


async def test_the_missing_extra_is_named(make_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "redis", None)
    pool = make_environment(fleet_url="redis://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"FLEET_URL\) needs the extra `redis`"):
        await pool.ping()


def test_a_url_that_redis_py_alone_refuses_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ConfigurationError, match=r"FLEET_URL\) must be a URL that redis-py accepts") as refused:
        create_client("redis://fleet.example:zz", "fleet_url")
    assert "zz" not in str(refused.value)
