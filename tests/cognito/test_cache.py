"""The claims cache in memory, its keys, and the wrapper for caches that may be slow or unavailable."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from asyncdb_guard.cognito import CacheKey, CognitoTriggers, CognitoUser, MemoryCache
from asyncdb_guard.cognito.caching.fail_fast import FailFastCache
from asyncdb_guard.cognito.caching.key import cache_key, stale_key, user_key
from asyncdb_guard.cognito.callbacks import callback_id, claims_callback
from asyncdb_guard.cognito.event import read_token_event
from tests.cognito.conftest import MakePool, returning
from tests.cognito.events import id_claims, token_event

ONE, OTHER = CacheKey("user", "one"), CacheKey("user", "other")


class Clocks:
    """The monotonic and the wall clock, moved by hand."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 100.0, 1_000_000.0

    def __call__(self) -> tuple[float, float]:
        return self.monotonic, self.wall


async def test_an_entry_lives_for_its_time() -> None:
    clocks = Clocks()
    cache = MemoryCache(now=clocks)
    await cache.put(ONE, "1", 60)
    clocks.monotonic += 59.9
    assert await cache.get(ONE) == "1"
    clocks.monotonic += 0.1
    assert await cache.get(ONE) is None
    assert len(cache) == 0


async def test_time_passes_while_the_process_is_frozen() -> None:
    clocks = Clocks()
    cache = MemoryCache(now=clocks)
    await cache.put(ONE, "1", 60)
    clocks.wall += 60  # the monotonic clock stood still
    assert await cache.get(ONE) is None


async def test_a_clock_that_is_set_back_does_not_change_an_entrys_age() -> None:
    clocks = Clocks()
    cache = MemoryCache(now=clocks)
    await cache.put(ONE, "1", 60)
    clocks.wall -= 3600
    clocks.monotonic += 59
    assert await cache.get(ONE) == "1"
    clocks.monotonic += 1
    assert await cache.get(ONE) is None


async def test_the_least_recently_used_entry_is_evicted_first() -> None:
    cache = MemoryCache(2)
    await cache.put(ONE, "1", 60)
    await cache.put(OTHER, "2", 60)
    await cache.get(ONE)
    await cache.put(CacheKey("user", "third"), "3", 60)
    assert await cache.get(OTHER) is None
    assert await cache.get(ONE) == "1"
    assert len(cache) == 2


async def test_forget_drops_one_user() -> None:
    cache = MemoryCache()
    await cache.put(ONE, "1", 60)
    await cache.put(CacheKey("somebody", "one"), "2", 60)
    await cache.forget("user")
    assert await cache.get(ONE) is None
    assert await cache.get(CacheKey("somebody", "one")) == "2"


def test_keys_hold_no_sub_and_no_e_mail() -> None:
    request = read_token_event(token_event("2", sub="the-sub"))
    key = cache_key(request, "source")
    stale = stale_key(request, "source")
    for part in (*key, *stale, user_key("the-sub")):
        assert len(part) == 64
        int(part, 16)
    assert key.user == user_key("the-sub") == stale.user
    assert key.entry != stale.entry
    assert cache_key(request, "another source") != key
    assert stale_key(request, "another source") != stale


def test_a_key_does_not_depend_on_the_order_of_attributes() -> None:
    one = token_event("2", userAttributes={"sub": "s", "a": "1"}, clientMetadata={"x": "1", "y": "2"})
    other = token_event("2", userAttributes={"a": "1", "sub": "s"}, clientMetadata={"y": "2", "x": "1"})
    assert cache_key(read_token_event(one), "") == cache_key(read_token_event(other), "")


class Faulty:
    """A cache that hangs or fails on command."""

    def __init__(self) -> None:
        self.calls = 0
        self.hang = False
        self.error: Exception | None = None
        self.kept = MemoryCache()

    async def _act(self) -> None:
        self.calls += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    async def get(self, key: CacheKey) -> str | None:
        await self._act()
        return await self.kept.get(key)

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        await self._act()
        await self.kept.put(key, value, ttl)

    async def forget(self, user: str) -> None:
        await self._act()
        await self.kept.forget(user)


async def test_a_cache_that_works_is_used() -> None:
    cache = FailFastCache(Faulty())
    await cache.put(ONE, "1", 60)
    assert await cache.get(ONE) == "1"
    await cache.forget("user")
    assert await cache.get(ONE) is None


async def test_a_cache_that_hangs_delays_one_call_by_a_tenth_of_a_second() -> None:
    faulty = Faulty()
    cache = FailFastCache(faulty)
    faulty.hang = True
    began = time.monotonic()
    for _ in range(10):
        assert await cache.get(ONE) is None
        await cache.put(ONE, "1", 60)
    assert time.monotonic() - began < 0.3
    assert faulty.calls == 1


async def test_the_backoff_doubles_with_each_failure_up_to_30_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clocks, faulty = Clocks(), Faulty()
    faulty.error = ConnectionError("redis://:secret@cache.internal")
    cache = FailFastCache(faulty, now=clocks)
    for rest in (1, 2, 4, 8, 16, 30, 30):
        calls = faulty.calls
        await cache.get(ONE)
        clocks.monotonic += rest - 0.1
        await cache.get(ONE)
        assert faulty.calls == calls + 1
        clocks.monotonic += 0.1
    faulty.error = None
    await cache.put(ONE, "1", 60)
    assert await cache.get(ONE) == "1"
    faulty.error = ConnectionError()
    await cache.get(ONE)
    clocks.monotonic += 1
    faulty.error = None
    assert await cache.get(ONE) == "1"  # the rests begin afresh after a success
    assert "ConnectionError" in caplog.text
    assert "secret" not in caplog.text


async def test_concurrent_failures_count_as_one() -> None:
    clocks, faulty = Clocks(), Faulty()
    cache = FailFastCache(faulty, now=clocks)
    faulty.hang = True
    await asyncio.gather(*(cache.get(ONE) for _ in range(10)))
    faulty.hang = False
    await faulty.kept.put(ONE, "1", 60)
    clocks.monotonic += 1
    assert await cache.get(ONE) == "1"


async def test_forget_is_attempted_during_the_backoff() -> None:
    faulty = Faulty()
    cache = FailFastCache(faulty)
    await cache.put(ONE, "1", 60)
    faulty.error = ConnectionError()
    await cache.get(ONE)
    faulty.error = None
    await cache.forget("user")
    assert await faulty.kept.get(ONE) is None


@pytest.mark.parametrize("fault", ["hang", "error"])
async def test_a_custom_cache_that_fails_fails_no_sign_in(make_pool: MakePool, fault: str) -> None:
    faulty = Faulty()
    triggers = CognitoTriggers(make_pool(), claims=returning({"a": 1}), cache=faulty)
    await triggers.load_claims(token_event("2", sub="s"))
    setattr(faulty, fault, True if fault == "hang" else RuntimeError())
    for _ in range(3):
        assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"a": 1}
    await triggers.forget("s")


@pytest.mark.parametrize("entry", ["", "{", "[]", '{"id":{"sub":"somebody"}}', b"\xff", 5])
async def test_an_invalid_cache_entry_is_a_miss(make_pool: MakePool, heard: list[str], entry: Any) -> None:
    class Invalid(Faulty):
        async def get(self, key: CacheKey) -> Any:
            return entry

    triggers = CognitoTriggers(make_pool(), claims=returning({"a": 1}), cache=Invalid())
    assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"a": 1}
    assert "cache_miss" in heard


async def answer(who: str, conn: Any, user: CognitoUser) -> Any:
    return {"who": who}


async def another(who: str, conn: Any, user: CognitoUser) -> Any:
    return {"who": f"another {who}"}


class First:
    async def __call__(self, conn: Any, user: CognitoUser) -> Any:
        return {"who": "First"}


class Second(First):
    pass


async def test_callbacks_that_differ_share_no_entry() -> None:
    callbacks = [partial(answer, "one"), partial(answer, "two"), partial(another, "one"), First(), Second()]
    assert len({callback_id(claims_callback(callback, None)) for callback in callbacks}) == 5
    again = [partial(answer, "one"), First()]
    assert {callback_id(claims_callback(callback, None)) for callback in again} == {
        callback_id(claims_callback(callback, None)) for callback in (callbacks[0], callbacks[3])
    }
