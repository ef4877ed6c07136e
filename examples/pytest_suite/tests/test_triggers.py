"""The two Cognito triggers: in the test's event loop, and in the real Lambda runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from app import notes

from asyncdb_guard import GuardedPool, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.testing import access_claims, id_claims, recorded

APP = Path(__file__).parents[1]


@pytest.mark.parametrize("version", [2, 3])
async def test_a_users_claims_are_in_both_tokens(triggers: CognitoTriggers, cognito_events: Any, version: int) -> None:
    event = await triggers.load_claims(cognito_events.token_event(version, sub="ada"))
    assert id_claims(event) == access_claims(event) == {"role": "admin"}


async def test_version_1_has_an_id_token_only(triggers: CognitoTriggers, cognito_events: Any) -> None:
    event = await triggers.load_claims(cognito_events.token_event(1, sub="ada"))
    assert event["response"]["claimsOverrideDetails"]["claimsToAddOrOverride"] == {"role": "admin"}


async def test_a_machine_has_no_claims(triggers: CognitoTriggers, cognito_events: Any) -> None:
    event = cognito_events.machine_event()
    assert await triggers.load_claims(event) == event


async def test_signing_up_three_times_is_signing_up_once(
    triggers: CognitoTriggers, rolled_back_pool: GuardedPool, cognito_events: Any
) -> None:
    for _ in range(3):
        await triggers.provision_user(cognito_events.confirmation_event(sub="grace"))
    assert await rolled_back_pool.fetchval("SELECT count(*) FROM app_user WHERE cognito_sub = 'grace'") == 1


async def test_a_callback_alone(rolled_back_pool: GuardedPool, cognito_events: Any) -> None:
    async with rolled_back_pool.acquire() as conn:
        assert await notes.claims(conn, cognito_events.cognito_user(sub="ada")) == {"role": "admin"}
        assert await notes.claims(conn, cognito_events.cognito_user(sub="nobody")) == {}


async def test_cached_claims_are_asked_for_again_when_they_expire(
    triggers: CognitoTriggers, rolled_back_pool: GuardedPool, cognito_events: Any, manual_clock: Any
) -> None:
    event = cognito_events.token_event(sub="ada")
    with recorded(rolled_back_pool) as events:
        for _ in range(2):
            await triggers.load_claims(event)
        manual_clock.advance(61)
        await triggers.load_claims(event)
    assert [name for name in events.names if name.startswith("cache")] == ["cache_miss", "cache_hit", "cache_miss"]


async def test_a_sign_in_is_denied_while_the_database_is_down(
    triggers: CognitoTriggers, rolled_back_pool: GuardedPool, cognito_events: Any, database_down: Any
) -> None:
    with database_down(rolled_back_pool), pytest.raises(TriggerFailedError, match="please try again later"):
        await triggers.load_claims(cognito_events.token_event(sub="ada"))
    assert id_claims(await triggers.load_claims(cognito_events.token_event(sub="ada"))) == {"role": "admin"}


async def test_a_sign_in_is_denied_at_once_while_the_circuit_is_open(
    triggers: CognitoTriggers, rolled_back_pool: GuardedPool, cognito_events: Any, open_circuit: Any
) -> None:
    with open_circuit(rolled_back_pool), pytest.raises(TriggerFailedError):
        await triggers.load_claims(cognito_events.token_event(sub="ada"))


def test_the_pre_token_function_answers_and_counts(lambda_runtime: Any, cognito_events: Any) -> None:
    runtime = lambda_runtime("app.triggers.pre_token", cwd=APP)
    answer = runtime.invoke(cognito_events.token_event(sub="ada"))
    assert answer.error is None
    assert id_claims(answer.payload) == {"role": "admin"}
    assert [metric["CacheMiss"] for metric in runtime.metrics] == [1]
    runtime.freeze()
    runtime.thaw()
    runtime.invoke(cognito_events.token_event(sub="ada"))
    assert [metric["CacheMiss"] for metric in runtime.metrics] == [1, 0]
    assert runtime.logs == []


def test_a_function_without_a_database_fails_with_a_safe_text(lambda_runtime: Any, cognito_events: Any) -> None:
    nowhere = {"LAMBDA_DATABASE_URL": "postgresql://somebody@127.0.0.1:1/app"}
    runtime = lambda_runtime("app.triggers.post_confirmation", env=nowhere, cwd=APP)
    answer = runtime.invoke(cognito_events.confirmation_event())
    assert answer.error["errorMessage"] == "The sign-up could not be completed, please try again later"
    runtime.terminate(grace=0.3)
    assert runtime.returncode is not None
