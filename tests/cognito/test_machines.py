"""Machine tokens: claims for an app client that signs in for itself, with no user."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import TriggerEventError, TriggerFailedError
from asyncdb_guard.cognito import CognitoClient, CognitoTriggers, TokenClaims
from asyncdb_guard.testing.cognito_events import cognito_client
from tests.cognito.conftest import MakePool
from tests.cognito.events import CLIENT_ID, POOL_ID, access_claims, machine_event, token_event

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool

DOWN = "postgresql://nobody@127.0.0.1:1/none"


async def tenant_of(conn: Any, client: CognitoClient) -> dict[str, Any]:
    return {"tenant": await conn.fetchval("SELECT 'tenant of ' || $1", client.client_id)}


def answering(value: Any) -> Any:
    async def machine_claims(conn: Any, client: CognitoClient) -> Any:
        return value

    return machine_claims


async def test_a_machine_gets_claims_in_its_access_token_alone(pool: GuardedPool) -> None:
    event = machine_event()
    answered = await CognitoTriggers(pool, machine_claims=tenant_of).load_claims(event)
    assert answered is event
    assert answered["response"] == {
        "claimsAndScopeOverrideDetails": {
            "accessTokenGeneration": {"claimsToAddOrOverride": {"tenant": f"tenant of {CLIENT_ID}"}}
        }
    }


async def test_scopes_and_suppressed_claims(pool: GuardedPool) -> None:
    claims = TokenClaims(
        access={"plan": "x", "aud": CLIENT_ID}, suppress=["old"], add_scopes=["a/b"], suppress_scopes=["c"]
    )
    event = await CognitoTriggers(pool, machine_claims=answering(claims)).load_claims(machine_event())
    assert event["response"]["claimsAndScopeOverrideDetails"]["accessTokenGeneration"] == {
        "claimsToAddOrOverride": {"plan": "x", "aud": CLIENT_ID},
        "claimsToSuppress": ["old"],
        "scopesToAdd": ["a/b"],
        "scopesToSuppress": ["c"],
    }


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (TokenClaims(id={"a": 1}), "id is for users"),
        (TokenClaims(suppress_id=["a"]), "suppress_id is for users"),
        (TokenClaims(groups=["a"]), "groups is for users"),
        (TokenClaims(iam_roles=["a"]), "iam_roles is for users"),
        (TokenClaims(preferred_role="a"), "preferred_role is for users"),
        ({"client_id": "another"}, "'client_id' is reserved"),
    ],
)
@pytest.mark.slow
async def test_what_a_machine_cannot_have_is_refused(
    pool: GuardedPool, refused: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, machine_claims=answering(refused)).load_claims(machine_event())
    assert told in caplog.text


def test_a_client_is_all_that_the_event_says_of_one() -> None:
    client = cognito_client(scopes=["a/b"], metadata={"app": "batch"})
    assert (client.client_id, client.scopes, client.client_metadata) == (CLIENT_ID, ("a/b",), {"app": "batch"})
    assert (client.user_pool_id, client.region, client.version) == (POOL_ID, "eu-central-1", 3)
    assert client.trigger_source == "TokenGeneration_ClientCredentials"
    assert repr(client) == "<CognitoClient, version 3>"


@pytest.mark.parametrize("user", [{}, {"userName": ""}, {"userName": None}, {"request": {"scopes": ["a"]}}])
async def test_a_machines_event_may_lack_all_of_a_user(pool: GuardedPool, user: dict[str, Any]) -> None:
    event = machine_event() | user
    assert access_claims(await CognitoTriggers(pool, machine_claims=tenant_of).load_claims(event))


async def test_a_machine_without_a_client_id_is_refused(pool: GuardedPool) -> None:
    event = machine_event() | {"callerContext": {}}
    with pytest.raises(TriggerEventError, match=r"callerContext\.clientId is missing or invalid$"):
        await CognitoTriggers(pool, machine_claims=tenant_of).load_claims(event)


async def test_a_machines_claims_are_cached_like_a_users(make_pool: MakePool, heard: list[str]) -> None:
    """By client, scopes and metadata; a user with the same text for a sub is somebody else."""
    triggers = CognitoTriggers(make_pool(), machine_claims=tenant_of, claims=answering({"role": "x"}))
    for _ in range(2):
        await triggers.load_claims(machine_event())
    for event in (
        machine_event(client_id="another"),
        machine_event(scopes=["other/scope"]),
        machine_event(metadata={"a": "b"}),
        token_event(3, sub=CLIENT_ID),
    ):
        await triggers.load_claims(event)
    await triggers.forget(CLIENT_ID)
    await triggers.load_claims(machine_event())
    await triggers.forget_client(CLIENT_ID)
    await triggers.load_claims(machine_event())
    assert [name for name in heard if name.startswith("cache")] == [
        "cache_miss", "cache_hit", *["cache_miss"] * 4, "cache_hit", "cache_miss"
    ]  # fmt: skip


@pytest.mark.parametrize(("policy", "answered"), [("deny", False), ("unchanged", True), ("stale", False)])
async def test_a_machine_is_judged_like_a_user(make_pool: MakePool, policy: Any, answered: bool) -> None:
    triggers = CognitoTriggers(make_pool(url=DOWN), machine_claims=tenant_of, on_unavailable=policy)
    before = machine_event()
    event = copy.deepcopy(before)
    if answered:
        assert await triggers.load_claims(event) == before
    else:
        with pytest.raises(TriggerFailedError):
            await triggers.load_claims(event)


async def test_stale_claims_serve_machines_too(make_pool: MakePool) -> None:
    from asyncdb_guard.cognito import MemoryCache

    cache = MemoryCache()
    up = CognitoTriggers(make_pool(), machine_claims=tenant_of, cache=cache, on_unavailable="stale")
    down = CognitoTriggers(
        make_pool(url=DOWN, claims_cache_ttl_ms=0), machine_claims=tenant_of, cache=cache, on_unavailable="stale"
    )
    known = await up.load_claims(machine_event())
    assert await down.load_claims(machine_event(metadata={"retry": "1"})) == known | {
        "request": machine_event(metadata={"retry": "1"})["request"]
    }
    with pytest.raises(TriggerFailedError):
        await down.load_claims(machine_event(scopes=["more/rights"]))


async def test_what_is_no_callback_is_refused(pool: GuardedPool, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, machine_claims=5).load_claims(machine_event())  # type: ignore[arg-type]
    assert "must be an `async def machine_claims(conn, client)`" in caplog.text
