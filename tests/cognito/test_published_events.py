"""The shapes of events that Powertools, the AWS libraries for Go and TypeScript, and local emulators publish."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from asyncdb_guard import GuardedPool, TriggerEventError
from asyncdb_guard.cognito import CognitoTriggers
from tests.cognito.conftest import returning
from tests.cognito.events import access_claims, confirmation_event, id_claims, machine_event, token_event

FILLED = {
    "claimsAndScopeOverrideDetails": {
        "idTokenGeneration": {"claimsToAddOrOverride": {"role": "guest"}, "claimsToSuppress": ["email"]},
        "accessTokenGeneration": {"claimsToAddOrOverride": {"role": "guest"}, "scopesToAdd": ["everything"]},
        "groupOverrideDetails": {"groupsToOverride": ["admins"], "iamRolesToOverride": [], "preferredRole": "x"},
    }
}
"""The answer of somebody's own function, which some samples carry in the event."""

NO_ROLE = {"groupsToOverride": [], "iamRolesToOverride": []}

TOKEN_EVENTS = {
    "Powertools, version 2 named 1": token_event("2", sub="s") | {"version": "1", "response": {}},
    "Go, version 2": token_event("2", sub="s", groupConfiguration=NO_ROLE) | {"response": FILLED},
    "Go, version 2, no preferred role": token_event("2", sub="s", groupConfiguration=NO_ROLE),
    "SAM, version 2": token_event("2", sub="s") | {"response": {"claimsAndScopeOverrideDetails": []}},
    "TypeScript, version 3": token_event("3", sub="s") | {"response": {}},
}

MACHINE_EVENTS = {
    "guide": machine_event(),
    "TypeScript, attributes of nobody": machine_event()
    | {"request": {"userAttributes": {"email": "example@example.com"}, "groupConfiguration": {}, "scopes": ["a/b"]}},
    "no user at all": {
        name: value for name, value in machine_event().items() if name not in {"userName", "region", "response"}
    },
    "filled in": machine_event() | {"response": FILLED},
}


@pytest.mark.parametrize("event", TOKEN_EVENTS.values(), ids=TOKEN_EVENTS)
async def test_token_events_are_answered(pool: GuardedPool, event: dict[str, Any]) -> None:
    answered = await CognitoTriggers(pool, claims=returning({"role": "x"})).load_claims(copy.deepcopy(event))
    assert id_claims(answered) == access_claims(answered) == {"role": "x"}
    assert "groupOverrideDetails" not in answered["response"]["claimsAndScopeOverrideDetails"]


@pytest.mark.parametrize("event", MACHINE_EVENTS.values(), ids=MACHINE_EVENTS)
async def test_machine_events_are_answered(pool: GuardedPool, event: dict[str, Any]) -> None:
    triggers = CognitoTriggers(pool, machine_claims="SELECT $1 AS machine")
    answered = await triggers.load_claims(copy.deepcopy(event))
    assert access_claims(answered) == {"machine": "example-client"}
    assert list(answered["response"]["claimsAndScopeOverrideDetails"]) == ["accessTokenGeneration"]


async def test_a_version_1_event_is_answered(pool: GuardedPool) -> None:
    event = token_event("1", sub="s") | {"response": {}}
    answered = await CognitoTriggers(pool, claims=returning({"role": "x"})).load_claims(event)
    assert answered["response"] == {"claimsOverrideDetails": {"claimsToAddOrOverride": {"role": "x"}}}


async def test_a_confirmation_event_is_answered(pool: GuardedPool) -> None:
    event = confirmation_event("s") | {"version": "string"}
    event["request"]["userAttributes"]["email_verified"] = True
    assert await CognitoTriggers(pool, provision="SELECT $1").provision_user(event) is event


@pytest.mark.parametrize("version", ["1", "string"])
async def test_a_confirmed_new_password_is_left_as_it_is(pool: GuardedPool, version: str) -> None:
    """Powertools' sample and Go's: the same trigger, and no new user."""
    event = confirmation_event("s", "PostConfirmation_ConfirmForgotPassword") | {"version": version}
    event["request"] |= {"clientMetadata": {"from": "the sample"}}
    asked = list[object]()

    async def provision(conn: object, user: object) -> None:
        asked.append(user)

    assert await CognitoTriggers(pool, provision=provision).provision_user(event) is event
    assert asked == []


V1_RESPONSES = {
    "empty": {},
    "null, as in Go's": {"claimsOverrideDetails": None},
    "filled in, as in the guide": {
        "claimsOverrideDetails": {
            "claimsToAddOrOverride": {"role": "guest"},
            "claimsToSuppress": ["email"],
            "groupOverrideDetails": {"groupsToOverride": ["admins"], "iamRolesToOverride": [], "preferredRole": "x"},
        }
    },
}


@pytest.mark.parametrize("response", V1_RESPONSES.values(), ids=V1_RESPONSES)
@pytest.mark.parametrize("roles", [[], None], ids=["a list of roles", "no roles"])
async def test_version_1_responses_are_replaced(
    pool: GuardedPool, response: dict[str, Any], roles: list[str] | None
) -> None:
    groups = {"groupsToOverride": ["staff"], "iamRolesToOverride": roles, "preferredRole": roles}
    event = token_event("1", sub="s", groupConfiguration=groups) | {"response": copy.deepcopy(response)}
    answered = await CognitoTriggers(pool, claims=returning({"role": "x"})).load_claims(event)
    assert answered["response"] == {"claimsOverrideDetails": {"claimsToAddOrOverride": {"role": "x"}}}


async def test_a_sample_without_a_sub_is_refused_by_name(pool: GuardedPool) -> None:
    """It is nobody's: a real event always has one."""
    event = confirmation_event("s")
    del event["request"]["userAttributes"]["sub"]
    with pytest.raises(TriggerEventError, match=r"request\.userAttributes\.sub is missing"):
        await CognitoTriggers(pool, provision="SELECT $1").provision_user(event)
