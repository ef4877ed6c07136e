"""Claims shared through a real Redis."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import TriggerFailedError
from asyncdb_guard.cognito import CacheKey, CognitoTriggers
from asyncdb_guard.cognito.caching.key import user_key
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.cognito.conftest import MakePool, returning, role_of
from tests.cognito.events import confirmation_event, id_claims, token_event
from tests.support.redis import RedisServer, cache_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncdb_guard.cognito.caching.redis import RedisCache

ONE, OTHER = CacheKey("user", "one"), CacheKey("user", "other")
CLAIMS = '{"id": {"role": "x"}}'
GENERATION = "asyncdb_guard:claims:1:{user}"

debian = pytest.mark.debian


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def get(cache: RedisCache, key: CacheKey) -> str | None:
    return (await cache.look_up(key)).text


async def put(cache: RedisCache, key: CacheKey, ttl: float) -> None:
    """As a sign-in does."""
    assert await cache.store(key, CLAIMS, ttl, (await cache.look_up(key)).generation) is not None


def entries(redis: RedisServer) -> list[str]:
    """The names of the entries, without the generations."""
    return [name for name in redis.command("KEYS", "*") if name and not name.endswith("}")]


@debian
async def test_an_entry_expires_after_its_ttl(redis: RedisServer, eventually: Any) -> None:
    cache = cache_on(redis.url)
    await put(cache, ONE, 0.2)
    assert json.loads(await get(cache, ONE) or "") == json.loads(CLAIMS)
    assert await get(cache, OTHER) is None
    (name,) = entries(redis)
    assert 0 < int(redis.command("PTTL", name)[0]) <= 200  # it is Redis that lets it go
    await eventually(lambda: entries(redis) == [])
    assert await get(cache, ONE) is None


@debian
async def test_forget_invalidates_all_entries_of_one_user_for_longer_than_any_ttl(redis: RedisServer) -> None:
    cache = cache_on(redis.url)
    somebody = CacheKey("somebody", "one")
    for key in (ONE, OTHER, somebody):
        await put(cache, key, 86_400)
    await cache.forget("user")
    assert [await get(cache, key) for key in (ONE, OTHER)] == [None, None]
    assert await get(cache, somebody) is not None
    assert int(redis.command("TTL", GENERATION)[0]) > 86_400
    await put(cache, ONE, 60)
    assert await get(cache, ONE) is not None
    await cache.forget("user")
    assert await get(cache, ONE) is None


@debian
@pytest.mark.parametrize("forgotten_before", [False, True])
async def test_forgotten_entries_stay_invalid_when_redis_evicts_their_generation(
    redis: RedisServer, forgotten_before: bool
) -> None:
    cache = cache_on(redis.url)
    if forgotten_before:
        await cache.forget("user")
    await put(cache, ONE, 60)
    await cache.forget("user")
    redis.command("DEL", GENERATION)
    assert await get(cache, ONE) is None
    await put(cache, OTHER, 60)
    assert [await get(cache, key) is None for key in (ONE, OTHER)] == [True, False]


@debian
@pytest.mark.parametrize("entry", ['{"generation": null, "claims": {}}', '{"claims": {}}'])
async def test_an_entry_without_a_generation_is_invalid(redis: RedisServer, entry: str) -> None:
    redis.command("SET", f"{GENERATION}:{ONE.entry}", entry)
    assert await get(cache_on(redis.url), ONE) is None


@debian
async def test_each_entry_renews_its_generation_and_keeps_the_others_valid(redis: RedisServer) -> None:
    cache = cache_on(redis.url)
    await put(cache, ONE, 86_400)
    redis.command("EXPIRE", GENERATION, "60")
    await put(cache, OTHER, 86_400)
    assert int(redis.command("TTL", GENERATION)[0]) > 86_400
    assert None not in [await get(cache, key) for key in (ONE, OTHER)]


@debian
async def test_claims_of_an_unknown_age_are_not_stored(redis: RedisServer) -> None:
    assert await cache_on(redis.url).store(ONE, CLAIMS, 60, None) is None
    assert redis.command("DBSIZE") == ["0"]


@debian
async def test_each_call_is_one_round_trip(redis: RedisServer) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        cache = cache_on(f"redis://{path.host}:{path.port}")
        await get(cache, ONE)  # the connection's own round trips
        for call in (lambda: cache.store(ONE, CLAIMS, 60, ""), lambda: get(cache, ONE), lambda: cache.forget("user")):
            before = path.round_trips
            await call()
            assert path.round_trips == before + 1


@debian
async def test_nothing_in_redis_names_anybody(make_pool: MakePool, redis: RedisServer) -> None:
    triggers = CognitoTriggers(make_pool(claims_cache_url=redis.url), claims=returning({"role": "x"}))
    await triggers.load_claims(token_event("2", sub="the-sub"))
    (name,) = entries(redis)
    (value,) = redis.command("GET", name)
    assert user_key("the-sub") in name
    for kept in redis.command("KEYS", "*"):
        for personal in ("the-sub", "ada", "example"):
            assert personal not in kept + redis.command("GET", kept)[0]
    assert json.loads(value)["claims"]["id"] == {"role": "x"}


@debian
async def test_one_environment_loads_for_the_fleet(
    make_pool: MakePool, redis: RedisServer, sub: str, heard: list[str]
) -> None:
    settings = {"claims_cache_url": redis.url}
    fleet = [CognitoTriggers(make_pool(**settings), claims=role_of) for _ in range(3)]
    for triggers in fleet:
        assert id_claims(await triggers.load_claims(token_event("2", sub=sub))) == {"role": "admin"}
    assert [name for name in heard if name.startswith("cache")] == ["cache_miss", "cache_hit", "cache_hit"]
    assert heard.count("connection_opened") == 1


@debian
async def test_fifty_at_once_are_one_query(make_pool: MakePool, redis: RedisServer, sub: str, heard: list[str]) -> None:
    triggers = CognitoTriggers(make_pool(claims_cache_url=redis.url), claims=role_of)
    await asyncio.gather(*(triggers.load_claims(token_event("2", sub=sub)) for _ in range(50)))
    assert heard.count("cache_miss") == 1


@debian
async def test_provisioning_in_one_environment_forgets_in_all(
    make_pool: MakePool, redis: RedisServer, sub: str
) -> None:
    settings = {"claims_cache_url": redis.url}
    signing_in = CognitoTriggers(make_pool(**settings), claims=role_of)
    assert id_claims(await signing_in.load_claims(token_event("2", sub=sub))) == {"role": "admin"}
    promote = "UPDATE app_user SET role = 'owner' WHERE cognito_sub = $1"
    await CognitoTriggers(make_pool(**settings), provision=promote).provision_user(confirmation_event(sub))
    assert id_claims(await signing_in.load_claims(token_event("2", sub=sub))) == {"role": "owner"}


@debian
async def test_redis_killed_in_mid_run_fails_no_sign_in(make_pool: MakePool, redis: RedisServer, sub: str) -> None:
    triggers = CognitoTriggers(make_pool(claims_cache_url=redis.url), claims=role_of)
    slowest = 0.0
    for number in range(60):
        if number == 20:
            redis.kill()
        if number == 40:
            redis.start()
        began = time.monotonic()
        assert id_claims(await triggers.load_claims(token_event("2", sub=sub))) == {"role": "admin"}
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0


@debian
async def test_a_deaf_redis_costs_a_tenth_of_a_second_and_then_nothing(
    make_pool: MakePool, redis: RedisServer, sub: str
) -> None:
    with TcpProxy(redis.host, redis.port) as path:
        settings = {"claims_cache_url": f"redis://{path.host}:{path.port}"}
        triggers = CognitoTriggers(make_pool(**settings), claims=role_of)
        await triggers.load_claims(token_event("2", sub=sub))
        path.deaf = True
        began = time.monotonic()
        for _ in range(20):
            assert id_claims(await triggers.load_claims(token_event("2", sub=sub))) == {"role": "admin"}
        assert time.monotonic() - began < 1.5  # each for itself, they would take 2 s


@debian
async def test_a_connection_that_redis_closed_costs_nothing(redis: RedisServer) -> None:
    cache = cache_on(redis.url)
    await put(cache, ONE, 60)
    redis.command("CLIENT", "KILL", "TYPE", "normal")
    assert await get(cache, ONE) is not None


@debian
def test_it_outlives_event_loops(redis: RedisServer) -> None:
    cache = cache_on(redis.url)
    asyncio.run(put(cache, ONE, 60))
    assert asyncio.run(get(cache, ONE)) is not None
    assert len(redis.command("CLIENT", "LIST")) == 2  # ours, and the one that asks


@debian
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # told of any process with threads
def test_a_forked_child_uses_a_connection_of_its_own(redis: RedisServer) -> None:
    cache = cache_on(redis.url)
    asyncio.run(put(cache, ONE, 60))
    child = os.fork()
    if not child:
        found = False
        try:
            found = asyncio.run(asyncio.wait_for(get(cache, ONE), 5)) is not None
        finally:
            os._exit(0 if found else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert asyncio.run(get(cache, ONE)) is not None


@debian
async def test_a_shared_entry_is_checked_like_any_other(
    make_pool: MakePool, redis: RedisServer, heard: list[str]
) -> None:
    triggers = CognitoTriggers(make_pool(claims_cache_url=redis.url), claims=returning({"role": "x"}))
    await triggers.load_claims(token_event("2", sub="s"))
    (name,) = entries(redis)
    (generation,) = redis.command("GET", name.rpartition(":")[0])
    for forged in (
        f'{{"generation": "{generation}", "claims": {{"id": {{"cognito:groups": ["admins"]}}}}}}',
        '{"generation": null, "claims": {"id": {"cognito:groups": ["admins"]}}}',
        '{"generation": "another", "claims": {"id": {"role": "admin"}}}',
        '{"claims": {"id": {"role": "admin"}}}',
    ):
        redis.command("SET", name, forged)
        assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"role": "x"}
    assert heard.count("cache_miss") == 5


@debian
async def test_stale_claims_come_from_redis_too(make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str) -> None:
    with RedisServer() as redis:
        settings = {"url": url_via_tcp_proxy, "claims_cache_url": redis.url, "claims_cache_ttl_ms": 60_000}
        fleet = [
            CognitoTriggers(make_pool(**settings), claims=returning({"a": 1}), on_unavailable="stale") for _ in range(2)
        ]
        await fleet[0].load_claims(token_event("2", sub="s"))
        ages = sorted(int(redis.command("TTL", name)[0]) for name in entries(redis))
        assert ages == [pytest.approx(60, abs=2), pytest.approx(3600, abs=2)]
        (fresh,) = [name for name in entries(redis) if int(redis.command("TTL", name)[0]) <= 60]
        redis.command("DEL", fresh)
        proxy.refuse = True
        proxy.reset_all()
        assert id_claims(await fleet[1].load_claims(token_event("2", sub="s"))) == {"a": 1}


async def test_the_missing_extra_is_named(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    triggers = CognitoTriggers(make_pool(claims_cache_url="redis://127.0.0.1:1"), claims=returning({}))
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event())
    assert "claims_cache_url (LAMBDA_DATABASE_CLAIMS_CACHE_URL) needs the extra `redis`" in caplog.text
