"""Cognito's events: the adapters read them, and each part can be chosen."""

from __future__ import annotations

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser
from asyncdb_guard.cognito.event import read_confirmation_event, read_token_event
from asyncdb_guard.testing import (
    access_claims,
    cognito_user,
    confirmation_event,
    id_claims,
    machine_event,
    token_event,
)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_token_event_says_what_it_was_told(version: int) -> None:
    event = token_event(
        version, sub="s", groups=["a", "b"], roles=[], scopes=["x"], attributes={"email": "e", "custom:t": "1"},
        metadata={"m": "1"}, source="TokenGeneration_RefreshTokens", client_id="web",
    )  # fmt: skip
    request = read_token_event(event)
    user = request.subject
    assert (user.version, user.sub, user.groups, user.client_id) == (version, "s", ("a", "b"), "web")
    assert user.scopes == (() if version == 1 else ("x",))
    assert (user.email, user.attributes["custom:t"], user.client_metadata) == ("e", "1", {"m": "1"})
    assert user.trigger_source == "TokenGeneration_RefreshTokens"
    assert event["version"] == str(version)


def test_users_differ_unless_they_are_told_not_to() -> None:
    assert cognito_user().sub != cognito_user().sub
    user = cognito_user(sub="s", groups=["admins"])
    assert isinstance(user, CognitoUser)
    assert (user.sub, user.groups, user.version) == ("s", ("admins",), 2)


def test_a_confirmation_event_is_a_sign_up_unless_told_otherwise() -> None:
    event = confirmation_event(sub="s", attributes={"email": "e"})
    assert read_confirmation_event(event).email == "e"
    assert event["triggerSource"] == "PostConfirmation_ConfirmSignUp"
    assert "clientMetadata" not in event["request"]


async def test_claims_are_read_from_the_answer(url: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        triggers = CognitoTriggers(pool, claims="SELECT 1 AS one")
        event = await triggers.load_claims(token_event())
        assert id_claims(event) == access_claims(event) == {"one": 1}
        machine = machine_event(scopes=["a/b"])
        assert await triggers.load_claims(machine) == machine_event(scopes=["a/b"])
        assert id_claims(machine) == {}
