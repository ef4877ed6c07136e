"""The claims cache in memory, its keys, and the wrapper for caches that may be slow or unavailable."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from asyncdb_guard import CacheUnavailableError
from asyncdb_guard.cognito import CacheKey, CognitoTriggers, CognitoUser, MemoryCache
from asyncdb_guard.cognito.caching.fail_fast import FailFastCache
from asyncdb_guard.cognito.caching.key import cache_key, stale_key, user_key
from asyncdb_guard.cognito.caching.plain import PlainBackend
from asyncdb_guard.cognito.caching.protocol import ClaimsCache
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


async def test_a_thousand_and_twenty_four_entries_are_kept() -> None:
    cache = MemoryCache()
    for number in range(1025):
        await cache.put(CacheKey("user", str(number)), "1", 60)
    assert len(cache) == 1024
    assert await cache.get(CacheKey("user", "0")) is None


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
    groups = {"groupsToOverride": ["a"], "preferredRole": "b"}
    one = token_event(
        "2", userAttributes={"sub": "s", "a": "1"}, clientMetadata={"x": "1", "y": "2"}, groupConfiguration=groups
    )
    other = token_event(
        "2", userAttributes={"a": "1", "sub": "s"}, clientMetadata={"y": "2", "x": "1"},
        groupConfiguration=dict(reversed(groups.items())),
    )  # fmt: skip
    for key in (cache_key, stale_key):
        assert key(read_token_event(one), "") == key(read_token_event(other), "")


def test_a_key_can_be_made_of_any_text() -> None:
    odd = user_key("\ud800")
    assert len(odd) == 64
    assert odd != user_key("\ud801")


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


def guarded(faulty: Faulty, **options: Any) -> FailFastCache:
    return FailFastCache(PlainBackend(faulty), **options)


async def get(cache: FailFastCache, key: CacheKey = ONE) -> str | None:
    return (await cache.look_up(key)).text


async def put(cache: FailFastCache, key: CacheKey = ONE) -> None:
    await cache.store(key, "1", 60, "")


async def test_a_cache_that_works_is_used() -> None:
    cache = guarded(Faulty())
    await put(cache)
    assert await get(cache) == "1"
    await cache.forget("user")
    assert await get(cache) is None
    await asyncio.sleep(0)
    assert not cache._late, "no call is remembered for ever"


async def test_a_cache_that_hangs_delays_one_call_by_a_tenth_of_a_second() -> None:
    faulty = Faulty()
    cache = guarded(faulty)
    faulty.hang = True
    began = time.monotonic()
    for _ in range(10):
        assert await get(cache) is None
        await put(cache)
    assert time.monotonic() - began < 0.9
    assert faulty.calls == 1


async def test_the_backoff_doubles_with_each_failure_up_to_30_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clocks, faulty = Clocks(), Faulty()
    faulty.error = ConnectionError("redis://:secret@cache.internal")
    cache = guarded(faulty, now=clocks)
    for rest in (1, 2, 4, 8, 16, 30, 30):
        calls = faulty.calls
        await get(cache)
        clocks.monotonic += rest - 0.1
        await get(cache)
        assert faulty.calls == calls + 1
        clocks.monotonic += 0.1
    faulty.error = None
    await put(cache)
    assert await get(cache) == "1"
    faulty.error = ConnectionError()
    await get(cache)
    clocks.monotonic += 1
    faulty.error = None
    assert await get(cache) == "1"  # the rests begin afresh after a success
    assert "The claims cache failed with ConnectionError. It is skipped for 1 s." in caplog.text
    assert "It is skipped for 30 s." in caplog.text
    assert "secret" not in caplog.text


async def test_concurrent_failures_count_as_one() -> None:
    clocks, faulty = Clocks(), Faulty()
    cache = guarded(faulty, now=clocks)
    faulty.hang = True
    await asyncio.gather(*(get(cache) for _ in range(10)))
    faulty.hang = False
    await faulty.kept.put(ONE, "1", 60)
    clocks.monotonic += 1
    assert await get(cache) == "1"


async def test_those_who_wait_for_their_turn_are_not_counted_against_the_cache() -> None:
    class Slow(Faulty):
        running = most = 0

        async def _act(self) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.02)
            self.running -= 1

    slow = Slow()
    await slow.kept.put(ONE, "1", 60)
    cache = guarded(slow, concurrency=2)
    assert await asyncio.gather(*(get(cache) for _ in range(20))) == ["1"] * 20  # 0.2 s in all, twice the bound
    assert slow.most == 2


async def test_those_who_wait_for_a_cache_that_hangs_give_up_with_the_first() -> None:
    faulty = Faulty()
    faulty.hang = True
    cache = guarded(faulty, concurrency=2)
    began = time.monotonic()
    assert await asyncio.gather(*(get(cache) for _ in range(20))) == [None] * 20
    assert time.monotonic() - began < 0.9
    assert faulty.calls == 2


async def test_a_wait_for_a_turn_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailFastCache, "QUEUE_TIMEOUT", 0.01)
    faulty = Faulty()
    faulty.hang = True
    cache = guarded(faulty, concurrency=1)
    first = asyncio.create_task(get(cache))
    await asyncio.sleep(0)
    assert await get(cache, OTHER) is None
    assert faulty.calls == 1
    assert not first.done()
    await first


def test_turns_are_those_of_the_running_event_loop() -> None:
    cache = guarded(Faulty(), concurrency=1)

    async def crowd() -> None:
        await asyncio.gather(*(get(cache) for _ in range(3)))

    for _ in range(2):
        asyncio.run(crowd())


async def test_an_answer_that_a_busy_event_loop_sees_late_counts() -> None:
    class Busy(Faulty):
        async def _act(self) -> None:
            await asyncio.sleep(0)
            time.sleep(0.12)  # noqa: ASYNC251 -- somebody blocks the event loop

    busy = Busy()
    await busy.kept.put(ONE, "1", 60)
    asyncio.get_running_loop().slow_callback_duration = 1
    assert await get(guarded(busy)) == "1"


async def test_a_cache_that_refuses_writes_is_still_read(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Faulty):
        async def put(self, key: CacheKey, value: str, ttl: float) -> None:
            self.calls += 1
            raise CacheUnavailableError("The claims cache is full.", answered=True)

    full = Full()
    await full.kept.put(ONE, "1", 60)
    cache = guarded(full)
    for _ in range(3):
        await put(cache, OTHER)
        assert await get(cache) == "1"
    assert full.calls == 4  # three reads, one write
    assert "The claims cache is full. Nothing is written to it for 1 s." in caplog.text


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
async def test_a_cache_that_raises_no_exception(error: type[BaseException]) -> None:
    class Odd(Faulty):
        async def _act(self) -> None:
            raise error

    if error is SystemExit:
        with pytest.raises(SystemExit):
            await get(guarded(Odd()))
    else:
        assert await get(guarded(Odd())) is None


async def test_forget_is_attempted_during_the_backoff() -> None:
    faulty = Faulty()
    cache = guarded(faulty)
    await put(cache)
    faulty.error = ConnectionError()
    await get(cache)
    faulty.error = None
    await cache.forget("user")
    assert await faulty.kept.get(ONE) is None


@pytest.mark.parametrize("fault", ["hang", "error"])
async def test_a_forget_that_fails_raises_and_is_made_up_for(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailFastCache, "FORGET_TIMEOUT", 0.01)
    clocks, faulty = Clocks(), Faulty()
    cache = guarded(faulty, now=clocks)
    somebody = CacheKey("somebody", "one")
    await put(cache)
    await put(cache, somebody)
    setattr(faulty, fault, True if fault == "hang" else RuntimeError())
    with pytest.raises(CacheUnavailableError, match=r"could not be deleted. Call forget\(\) again"):
        await cache.forget("user")
    setattr(faulty, fault, None)
    assert await get(cache) is None  # as the cache is skipped
    clocks.monotonic += 1
    assert await get(cache, somebody) == "1"
    assert await faulty.kept.get(ONE) is None  # whoever comes first, the user is forgotten
    await put(cache)
    assert await get(cache) == "1"


async def test_a_user_who_is_not_forgotten_yet_is_neither_read_nor_written() -> None:
    class Unforgetting(Faulty):
        async def forget(self, user: str) -> None:
            raise CacheUnavailableError("The claims cache is read-only.", answered=True)

    faulty = Unforgetting()
    cache = guarded(faulty)
    await put(cache)
    await cache.forget_soon("user")
    calls = faulty.calls
    for _ in range(3):
        assert await get(cache) is None
        await put(cache)
    assert faulty.calls == calls
    with pytest.raises(CacheUnavailableError):
        await cache.forget("user")


async def test_the_users_who_are_to_be_forgotten_are_limited_in_number() -> None:
    faulty = Faulty()
    faulty.error = RuntimeError()
    cache = guarded(faulty)
    for number in range(10_002):
        await cache.forget_soon(str(number))
    assert list(cache._owed) == [str(number) for number in range(2, 10_002)]


def test_the_docstrings_tell_the_seconds_that_a_cache_has() -> None:
    for of_forget in (ClaimsCache.__doc__, CognitoTriggers.forget.__doc__):
        assert f"{FailFastCache.FORGET_TIMEOUT:g} s" in str(of_forget)
    assert f"{FailFastCache.CALL_TIMEOUT:g} s" in str(ClaimsCache.__doc__)


@pytest.mark.parametrize("fault", ["hang", "error"])
@pytest.mark.slow
async def test_a_custom_cache_that_fails_fails_no_sign_in(make_pool: MakePool, fault: str) -> None:
    faulty = Faulty()
    triggers = CognitoTriggers(make_pool(), claims=returning({"a": 1}), cache=faulty)
    await triggers.load_claims(token_event("2", sub="s"))
    setattr(faulty, fault, True if fault == "hang" else RuntimeError())
    for _ in range(3):
        assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"a": 1}
    with pytest.raises(CacheUnavailableError):
        await triggers.forget("s")


class Storing(MemoryCache):
    """A cache of which each write waits, and which may let a `forget` overtake it."""

    def __init__(self) -> None:
        super().__init__()
        self.storing, self.go_on = asyncio.Event(), asyncio.Event()

    async def put(self, key: CacheKey, value: str, ttl: float) -> None:
        self.storing.set()
        await self.go_on.wait()
        await super().put(key, value, ttl)


@pytest.mark.parametrize("policy", ["deny", "stale"])
async def test_a_user_who_is_forgotten_while_claims_are_written_is_forgotten(make_pool: MakePool, policy: Any) -> None:
    cache = Storing()
    triggers = CognitoTriggers(make_pool(), claims=returning({"a": 1}), cache=cache, on_unavailable=policy)
    loading = asyncio.create_task(triggers.load_claims(token_event("2", sub="s")))
    await cache.storing.wait()
    await triggers.forget("s")
    cache.go_on.set()
    await loading
    assert len(cache) == 0


@pytest.mark.parametrize("entry", ["", "{", "[]", "{}", '{"id":{"sub":"somebody"}}', '{"role":"x"}', b"\xff", 5])
async def test_an_invalid_cache_entry_is_a_miss_that_is_told_once(
    make_pool: MakePool, heard: list[str], caplog: pytest.LogCaptureFixture, entry: Any
) -> None:
    class Invalid(Faulty):
        async def get(self, key: CacheKey) -> Any:
            return entry

    triggers = CognitoTriggers(make_pool(), claims=returning({"a": 1}), cache=Invalid())
    for _ in range(2):
        assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"a": 1}
    assert heard.count("cache_miss") == 2
    assert caplog.text.count("not in the format of this library, and counts as a miss") == 1


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
