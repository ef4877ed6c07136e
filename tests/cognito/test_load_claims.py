"""`load_claims` from an event to its answer, with a real database."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import UserDict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool, TriggerEventError, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser, MemoryCache, TokenClaims
from tests.cognito.conftest import MakePool, returning, role_of
from tests.cognito.events import access_claims, confirmation_event, id_claims, machine_event, token_event

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy


async def test_version_1_has_texts_for_the_id_token(pool: GuardedPool, sub: str) -> None:
    async def claims(conn: Any, user: CognitoUser) -> dict[str, Any]:
        row = await conn.fetchrow("SELECT role, score, runs FROM app_user WHERE cognito_sub = $1", user.sub)
        return dict(row)

    event = await CognitoTriggers(pool, claims=claims).load_claims(token_event("1", sub=sub))
    assert event["response"] == {
        "claimsOverrideDetails": {"claimsToAddOrOverride": {"role": "admin", "score": "1.5", "runs": "0"}}
    }


@pytest.mark.parametrize("version", ["2", "3"])
async def test_versions_2_and_3_have_claims_for_both_tokens(pool: GuardedPool, sub: str, version: str) -> None:
    event = await CognitoTriggers(pool, claims=role_of).load_claims(token_event(version, sub=sub))
    assert event["response"] == {
        "claimsAndScopeOverrideDetails": {
            "idTokenGeneration": {"claimsToAddOrOverride": {"role": "admin"}},
            "accessTokenGeneration": {"claimsToAddOrOverride": {"role": "admin"}},
        }
    }


@pytest.mark.parametrize("response", [{}, None, [], "string", {"claimsAndScopeOverrideDetails": []}, ...])
async def test_the_event_itself_is_answered_and_only_its_response_changes(pool: GuardedPool, response: Any) -> None:
    event = token_event("2") | {"response": response}
    if response is ...:
        del event["response"]
    before = copy.deepcopy(event)
    answered = await CognitoTriggers(pool, claims=returning({"role": "x"})).load_claims(event)
    assert answered is event
    assert id_claims(event) == {"role": "x"}
    before.pop("response", None)
    assert {name: value for name, value in event.items() if name != "response"} == before
    if isinstance(response, dict):
        assert event["response"] is not response


async def test_a_user_without_a_row_has_no_claims(pool: GuardedPool, sub: str) -> None:
    event = await CognitoTriggers(pool, claims=role_of).load_claims(token_event("2"))
    assert id_claims(event) == access_claims(event) == {}


@pytest.mark.parametrize(
    "source", ["HostedAuth", "Authentication", "NewPasswordChallenge", "AuthenticateDevice", "RefreshTokens", "Later"]
)
async def test_every_source_that_has_a_user_gets_claims(pool: GuardedPool, sub: str, source: str) -> None:
    event = token_event("2", sub=sub, source=f"TokenGeneration_{source}")
    assert id_claims(await CognitoTriggers(pool, claims=role_of).load_claims(event)) == {"role": "admin"}


async def test_a_machine_is_answered_unchanged_and_without_the_database(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    event = machine_event()
    before = copy.deepcopy(event)
    answered = await CognitoTriggers(make_pool(url=url_via_tcp_proxy), claims=role_of).load_claims(event)
    assert answered is event
    assert event == before
    assert proxy.accepted == 0


async def test_what_is_no_event_of_this_trigger_costs_no_connection(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    triggers = CognitoTriggers(make_pool(url=url_via_tcp_proxy), claims=role_of)
    for event in (
        None,
        [],
        {},
        token_event(source="PreSignUp_SignUp"),
        token_event("9"),
        token_event(userAttributes={}),
    ):
        with pytest.raises(TriggerEventError):
            await triggers.load_claims(event)  # type: ignore[arg-type]
    assert proxy.accepted == 0


async def test_token_claims_say_more_than_a_mapping(pool: GuardedPool) -> None:
    claims = TokenClaims({"tier": 1}, add_scopes=["api/read"], groups=["a"])
    event = await CognitoTriggers(pool, claims=returning(claims)).load_claims(token_event("3"))
    details = event["response"]["claimsAndScopeOverrideDetails"]
    assert details["accessTokenGeneration"]["scopesToAdd"] == ["api/read"]
    assert details["groupOverrideDetails"]["groupsToOverride"] == ["a"]
    assert details["groupOverrideDetails"]["iamRolesToOverride"] == ["arn:aws:iam::1:role/e"]


async def test_a_cache_hit_sends_nothing_to_the_database(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, sub: str, heard: list[str]
) -> None:
    triggers = CognitoTriggers(make_pool(url=url_via_tcp_proxy), claims=role_of)
    first = await triggers.load_claims(token_event("2", sub=sub))
    sent, messages = proxy.client_bytes, proxy.client_messages
    second = await triggers.load_claims(token_event("2", sub=sub))
    assert (proxy.client_bytes, proxy.client_messages) == (sent, messages)
    assert second["response"] == first["response"]
    assert [name for name in heard if name.startswith("cache")] == ["cache_miss", "cache_hit"]


async def test_a_callers_changes_to_an_answer_do_not_reach_the_next(pool: GuardedPool) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"roles": ["user"]}))
    first = await triggers.load_claims(token_event("2", sub="s"))
    id_claims(first)["roles"].append("admin")
    second = await triggers.load_claims(token_event("2", sub="s"))
    id_claims(second)["roles"].append("admin")
    assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"roles": ["user"]}


@pytest.mark.parametrize("part", ["both", "one"])
async def test_an_answer_shares_nothing_between_its_tokens_that_a_caller_could_change(
    pool: GuardedPool, part: str
) -> None:
    shared = ["user"]
    claims = {"roles": shared} if part == "both" else TokenClaims(id={"roles": shared}, access={"roles": shared})
    event = await CognitoTriggers(pool, claims=returning(claims)).load_claims(token_event("2"))
    id_claims(event)["roles"].append("admin")
    assert access_claims(event) == {"roles": ["user"]}
    assert shared == ["user"]


@pytest.mark.parametrize("ttl", [0, 60_000])
async def test_fifty_at_once_are_one_miss_and_one_query(
    make_pool: MakePool, sub: str, heard: list[str], ttl: int
) -> None:
    asked = 0

    async def claims(conn: Any, user: CognitoUser) -> Any:
        nonlocal asked
        asked += 1
        await conn.execute("SELECT pg_sleep(0.05)")
        return await role_of(conn, user)

    triggers = CognitoTriggers(make_pool(claims_cache_ttl_ms=ttl), claims=claims)
    events = await asyncio.gather(*(triggers.load_claims(token_event("2", sub=sub)) for _ in range(50)))
    assert asked == 1
    assert heard.count("cache_miss") == 1
    assert all(id_claims(event) == {"role": "admin"} for event in events)
    await triggers.load_claims(token_event("2", sub=sub))
    assert asked == (1 if ttl else 2)  # without a cache only those who asked together share


async def test_a_failed_load_fails_all_who_wait_for_it(pool: GuardedPool, caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    async def claims(conn: Any, user: CognitoUser) -> Any:
        nonlocal asked
        asked += 1
        await conn.execute("SELECT 1/0")

    triggers = CognitoTriggers(pool, claims=claims)
    loads = (triggers.load_claims(token_event("2", sub="s")) for _ in range(10))
    outcomes = await asyncio.gather(*loads, return_exceptions=True)
    assert asked == 1
    assert [type(outcome) for outcome in outcomes] == [TriggerFailedError] * 10
    assert caplog.text.count("DivisionByZeroError [22012]") == 10


async def test_different_users_never_share_a_load(pool: GuardedPool) -> None:
    async def claims(conn: Any, user: CognitoUser) -> Any:
        await asyncio.sleep(0)
        return {"whose": user.sub}

    triggers = CognitoTriggers(pool, claims=claims)
    subs = [f"user-{number % 10}" for number in range(50)]
    events = await asyncio.gather(*(triggers.load_claims(token_event("2", sub=sub)) for sub in subs))
    assert [id_claims(event)["whose"] for event in events] == subs


CHANGES: list[dict[str, Any]] = [
    {"version": "3"}, {"userPoolId": "another"}, {"region": "another"}, {"userName": "another"},
    {"callerContext": {"clientId": "another"}}, {"triggerSource": "TokenGeneration_RefreshTokens"},
    {"groupConfiguration": {"groupsToOverride": ["another"]}},
    {"groupConfiguration": {"groupsToOverride": ["editors"], "iamRolesToOverride": ["another"]}},
    {"scopes": ["another"]}, {"clientMetadata": {"a": "another"}},
    {"userAttributes": {"sub": "s", "email": "another@example.com"}}, {"userAttributes": {"sub": "another"}},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=[",".join(change) for change in CHANGES])
async def test_whatever_a_callback_can_see_is_in_the_cache_key(
    pool: GuardedPool, heard: list[str], change: dict[str, Any]
) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"role": "x"}))
    plain = token_event("2", userAttributes={"sub": "s", "email": "ada@example.com"})
    other = copy.deepcopy(plain)
    for name, value in change.items():
        (other if name in other else other["request"])[name] = value
    for event in (plain, other, copy.deepcopy(other)):
        await triggers.load_claims(event)
    assert heard.count("cache_miss") == 2
    assert heard.count("cache_hit") == 1


@pytest.mark.parametrize("changed", ["SELECT 2 AS a", returning({"a": 3}), role_of])
async def test_a_changed_callback_does_not_get_the_claims_of_the_old_one(
    pool: GuardedPool, sub: str, heard: list[str], changed: Any
) -> None:
    cache = MemoryCache()
    for claims in ("SELECT 1 AS a", changed):
        await CognitoTriggers(pool, claims=claims, cache=cache).load_claims(token_event("2", sub=sub))
    assert heard.count("cache_miss") == 2


async def test_an_empty_answer_is_not_cached(pool: GuardedPool, heard: list[str]) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"role": None}))
    for _ in range(3):
        await triggers.load_claims(token_event("2", sub="s"))
    assert heard.count("cache_miss") == 3


async def test_a_failure_is_not_cached(pool: GuardedPool) -> None:
    answers: list[Any] = [b"", {"role": "x"}]

    async def claims(conn: Any, user: CognitoUser) -> Any:
        return {"role": answers.pop(0)}

    triggers = CognitoTriggers(pool, claims=claims)
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims(token_event("2", sub="s"))
    answers[:] = ["x"]
    assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"role": "x"}


async def test_time_to_live_zero_turns_every_cache_off(make_pool: MakePool, heard: list[str]) -> None:
    cache = MemoryCache()
    triggers = CognitoTriggers(make_pool(claims_cache_ttl_ms=0), claims=returning({"a": 1}), cache=cache)
    for _ in range(3):
        await triggers.load_claims(token_event("2", sub="s"))
        await triggers.forget("s")
    assert heard.count("cache_miss") == 3
    assert len(cache) == 0


async def test_forget_drops_all_of_one_user_and_nothing_else(pool: GuardedPool, heard: list[str]) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"a": 1}))
    events = [token_event("2", sub="s"), token_event("3", sub="s"), token_event("2", sub="t")]
    for event in events:
        await triggers.load_claims(copy.deepcopy(event))
    await triggers.forget("s")
    heard.clear()
    for event in events:
        await triggers.load_claims(copy.deepcopy(event))
    assert [name for name in heard if name.startswith("cache")] == ["cache_miss", "cache_miss", "cache_hit"]


async def test_a_load_during_which_the_user_was_forgotten_is_not_cached(pool: GuardedPool, heard: list[str]) -> None:
    async def claims(conn: Any, user: CognitoUser) -> Any:
        await triggers.forget(user.sub)
        return {"old": True}

    triggers = CognitoTriggers(pool, claims=claims)
    for _ in range(2):
        assert id_claims(await triggers.load_claims(token_event("2", sub="s"))) == {"old": True}
    assert heard.count("cache_miss") == 2


async def test_a_cancelled_caller_cancels_no_other(pool: GuardedPool, sub: str, heard: list[str]) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def claims(conn: Any, user: CognitoUser) -> Any:
        started.set()
        await go_on.wait()
        return await role_of(conn, user)

    triggers = CognitoTriggers(pool, claims=claims)
    tasks = [asyncio.create_task(triggers.load_claims(token_event("2", sub=sub))) for _ in range(5)]
    await started.wait()
    started.clear()
    tasks[0].cancel()  # it loads
    tasks[3].cancel()  # it waits
    await started.wait()  # another one loads in its place
    go_on.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False, False, True, False]
    assert all(id_claims(outcome) == {"role": "admin"} for outcome in outcomes if isinstance(outcome, dict))
    assert heard.count("cache_miss") == 2


def test_a_load_left_behind_on_another_event_loop_is_not_waited_for(url: str) -> None:
    started = asyncio.Event()

    async def claims(conn: Any, user: CognitoUser) -> Any:
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        return {"role": "x"}

    pool = GuardedPool(DatabaseSettings(url=url))
    triggers = CognitoTriggers(pool, claims=claims)
    with asyncio.Runner() as left_behind, asyncio.Runner() as running:
        first = left_behind.get_loop().create_task(triggers.load_claims(token_event("2", sub="s")))
        left_behind.run(started.wait())
        assert id_claims(running.run(triggers.load_claims(token_event("2", sub="s")))) == {"role": "x"}
        running.run(pool.close())
        first.cancel()
        left_behind.run(asyncio.wait({first}))
    assert first.cancelled()


async def test_a_lost_session_costs_one_more_read(
    pool: GuardedPool,
    sub: str,
    role: str,
    observer: Observer,
    heard: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "asyncdb_guard")
    asked = 0

    async def claims(conn: Any, user: CognitoUser) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            await observer.terminate(user=role)
        return await role_of(conn, user)

    event = await CognitoTriggers(pool, claims=claims).load_claims(token_event("2", sub=sub))
    assert id_claims(event) == {"role": "admin"}
    assert asked == 2
    assert heard.count("cache_miss") == 1
    assert "Reading them once more." in caplog.text


async def test_a_session_that_is_lost_again_is_a_failure(pool: GuardedPool, role: str, observer: Observer) -> None:
    asked = 0

    async def claims(conn: Any, user: CognitoUser) -> Any:
        nonlocal asked
        asked += 1
        await observer.terminate(user=role)
        await conn.execute("SELECT 1")

    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, claims=claims).load_claims(token_event("2"))
    assert asked == 2


async def test_callers_who_share_a_load_share_nothing_that_one_may_change(pool: GuardedPool, sub: str) -> None:
    async def claims(conn: Any, user: CognitoUser) -> Any:
        await asyncio.sleep(0.01)
        return TokenClaims({"perms": {"a": [1]}}, groups=["one"])

    triggers = CognitoTriggers(pool, claims=claims)
    one, two = await asyncio.gather(*(triggers.load_claims(token_event("2", sub=sub)) for _ in range(2)))
    id_claims(one)["perms"]["a"].append("admin")
    one["response"]["claimsAndScopeOverrideDetails"]["groupOverrideDetails"]["groupsToOverride"].append("admin")
    assert id_claims(two) == {"perms": {"a": [1]}}
    assert two["response"]["claimsAndScopeOverrideDetails"]["groupOverrideDetails"]["groupsToOverride"] == ["one"]


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict])
async def test_an_event_that_is_no_dict_is_answered_with_what_the_runtime_can_send(
    pool: GuardedPool, kind: Any
) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"a": 1}), provision=returning(None))
    answer = await triggers.load_claims(kind(token_event("2", sub="s")))
    assert id_claims(json.loads(json.dumps(answer))) == {"a": 1}
    event = confirmation_event("s")
    assert json.loads(json.dumps(await triggers.provision_user(kind(event)))) == event


async def decode_json(conn: Any) -> None:
    for kind in ("json", "jsonb"):
        await conn.set_type_codec(kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


@pytest.mark.parametrize(("init", "expected"), [(None, '{"a": [1]}'), (decode_json, {"a": [1]})])
async def test_a_json_column_is_text_unless_the_connection_decodes_it(
    url: str, sub: str, init: Any, expected: object
) -> None:
    """As the page says; over releases, too."""

    async def claims(conn: Any, user: Any) -> Any:
        return await conn.fetchrow("""SELECT '{"a": [1]}'::jsonb AS settings""")

    async with GuardedPool(DatabaseSettings(url=url, claims_cache_ttl_ms=0), init=init) as pool:
        for _ in range(2):
            event = await CognitoTriggers(pool, claims=claims).load_claims(token_event("2", sub=sub))
            assert id_claims(event) == {"settings": expected}
