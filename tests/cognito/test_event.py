"""Reading events: lenient, and without showing a value."""

from __future__ import annotations

import copy
import json
from collections import ChainMap, UserDict
from dataclasses import FrozenInstanceError
from types import MappingProxyType
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes.cognito_user_pool_event import PreTokenGenerationTriggerEvent

from asyncdb_guard import TriggerEventError
from asyncdb_guard.cognito.event import (
    plain_event,
    public_source,
    read_confirmation_event,
    read_token_event,
    trigger_source,
)
from tests.cognito.events import CLIENT_ID, POOL_ID, confirmation_event, token_event


def without(event: dict[str, Any], path: str) -> dict[str, Any]:
    event = copy.deepcopy(event)
    *holders, last = path.split(".")
    holder = event
    for name in holders:
        holder = holder[name]
    del holder[last]
    return event


def replaced(event: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    event = copy.deepcopy(event)
    *holders, last = path.split(".")
    holder = event
    for name in holders:
        holder = holder[name]
    holder[last] = value
    return event


def test_a_user_is_all_that_the_event_says_of_one() -> None:
    user = read_token_event(token_event("2", sub="the-sub", clientMetadata={"app": "web"})).subject
    assert (user.sub, user.username, user.email, user.email_verified) == ("the-sub", "ada", "ada@example.com", True)
    assert user.attributes["cognito:user_status"] == "CONFIRMED"
    assert (user.groups, user.scopes) == (("editors",), ("openid", "email"))
    assert (user.user_pool_id, user.client_id, user.region) == (POOL_ID, CLIENT_ID, "eu-central-1")
    assert (user.trigger_source, user.version) == ("TokenGeneration_HostedAuth", 2)
    assert user.client_metadata == {"app": "web"}


def test_a_user_can_not_be_changed() -> None:
    user = read_confirmation_event(confirmation_event())
    with pytest.raises(FrozenInstanceError):
        user.sub = "another"  # type: ignore[misc]
    with pytest.raises(TypeError):
        user.attributes["sub"] = "another"  # type: ignore[index]


def test_the_repr_of_a_user_shows_nothing_personal() -> None:
    user = read_confirmation_event(confirmation_event("the-sub"))
    assert repr(user) == "<CognitoUser, version 1>"
    assert repr(user) in f"{user}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), (True, True), ("False", False), (False, False), ("maybe", None), (None, None), ([], None)],
)
def test_email_verified_is_read_as_a_text_or_a_boolean(value: Any, expected: bool | None) -> None:
    event = replaced(token_event(), "request.userAttributes.email_verified", value)
    assert read_token_event(event).subject.email_verified is expected


def test_attributes_are_texts_whatever_the_event_has() -> None:
    event = replaced(
        token_event(),
        "request.userAttributes",
        {"sub": "s", "n": 1, "f": 1.5, "yes": True, "none": None, "list": [1, "a"], "object": {"a": None}},
    )
    assert read_token_event(event).subject.attributes == {
        "sub": "s", "n": "1", "f": "1.5", "yes": "true", "list": '[1,"a"]', "object": '{"a":null}',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "request_", "response", "expected"),
    [
        ("1", {}, {"claimsOverrideDetails": None}, 1),
        ("0", {}, {}, 1),
        (0, {}, {}, 1),
        ("0", {"scopes": ["openid"]}, {}, 2),
        ("1", {"scopes": ["openid"]}, {}, 2),
        ("1", {"scopes": None}, {}, 1),
        ("1", {}, {"claimsAndScopeOverrideDetails": []}, 2),
        ("2", {}, {"claimsOverrideDetails": None}, 2),
        ("3", {}, {}, 3),
        (3, {}, {}, 3),
        ("string", {}, {}, 1),
        ("string", {"scopes": []}, {}, 2),
        ("1", {}, "string", 1),
        ("1", {}, [], 1),
    ],
)
def test_the_version_is_what_the_shape_says(version: Any, request_: Any, response: Any, expected: int) -> None:
    event = token_event("1", **request_) | {"version": version, "response": response}
    assert read_token_event(event).subject.version == expected


@pytest.mark.parametrize("version", ["4", "00", "10", 4, -0.5, True, "", None, [], {}])
def test_an_unknown_version_is_refused(version: Any) -> None:
    with pytest.raises(TriggerEventError, match=r"version is missing or invalid$"):
        read_token_event(token_event("2") | {"version": version})


class Readable:
    """Neither a Mapping nor a dict, but it can be read like one."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.event = event

    def keys(self) -> Any:
        return self.event.keys()

    def __getitem__(self, name: str) -> Any:
        return self.event[name]


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict, ChainMap, Readable, PreTokenGenerationTriggerEvent])
def test_any_mapping_is_an_event_and_becomes_a_dict(kind: Any) -> None:
    event = token_event("2", sub="s")
    answer = plain_event(kind(event))
    assert type(answer) is dict
    assert answer == event
    assert read_token_event(answer).subject.sub == "s"


def test_a_dict_is_kept_and_what_is_in_it_becomes_plain() -> None:
    event = token_event("2")
    request = event["request"]
    event["response"] = MappingProxyType({"list": ({"a": UserDict(b=1)},)})
    assert plain_event(event) is event
    assert event["request"] is request
    assert json.loads(json.dumps(event))["response"] == {"list": [{"a": {"b": 1}}]}


def test_a_list_is_kept_and_a_tuple_becomes_one() -> None:
    event = {"list": [1], "tuple": (1,), "typed": [UserDict(a=1)]}
    kept = event["list"]
    assert plain_event(event) == {"list": [1], "tuple": [1], "typed": [{"a": 1}]}
    assert event["list"] is kept


class Indexable:
    """An object that cannot be listed, so that it cannot be sent back."""

    def __getitem__(self, name: str) -> Any:
        return token_event()[name]


def test_what_is_no_mapping_is_left_to_be_refused() -> None:
    event = Indexable()
    assert plain_event(event) is event
    with pytest.raises(TriggerEventError, match="not an object"):
        trigger_source(event)


@pytest.mark.parametrize("event", [None, [], "event", 1, True])
def test_what_is_no_event_is_refused(event: Any) -> None:
    with pytest.raises(TriggerEventError, match="not an object"):
        trigger_source(event)


@pytest.mark.parametrize(
    "field", ["triggerSource", "version", "request", "request.userAttributes", "request.userAttributes.sub"]
)
@pytest.mark.parametrize("value", [None, "", [], 7, ...])
def test_a_field_that_is_missing_or_does_not_fit_is_named(field: str, value: Any) -> None:
    event = without(token_event(), field) if value is ... else replaced(token_event(), field, value)
    with pytest.raises(TriggerEventError, match=rf"{field} is missing or invalid$"):
        read_token_event(event)


def test_the_trigger_of_another_kind_is_refused() -> None:
    with pytest.raises(TriggerEventError, match="triggerSource"):
        read_token_event(token_event(source="PreSignUp_SignUp"))


@pytest.mark.parametrize("odd", [None, [], "string", 5, {}])
@pytest.mark.parametrize(
    "field",
    ["callerContext", "userName", "userPoolId", "region", "response", "request.groupConfiguration", "request.scopes",
     "request.clientMetadata"],
)  # fmt: skip
def test_odd_shapes_elsewhere_are_survived(field: str, odd: Any) -> None:
    event = replaced(token_event("2", sub="s", clientMetadata={}), field, odd)
    user = read_token_event(event).subject
    assert user.sub == "s"
    assert isinstance(user.groups, tuple)
    assert isinstance(user.client_id, str)


@pytest.mark.parametrize(
    "source",
    [
        "CreateAuthChallenge_Authentication", "CustomEmailSender_SignUp", "CustomMessage_SignUp",
        "CustomSMSSender_SignUp", "DefineAuthChallenge_Authentication", "InboundFederation_ExternalProvider",
        "PostAuthentication_Authentication", "PostConfirmation_ConfirmSignUp", "PreAuthentication_Authentication",
        "PreSignUp_AdminCreateUser",
        "TokenGeneration_HostedAuth", "UserMigration_Authentication", "VerifyAuthChallengeResponse_Authentication",
    ],
)  # fmt: skip
def test_a_source_of_cognitos_is_shown_in_a_log(source: str) -> None:
    assert public_source(source) == source
    assert public_source(source + "A" * 64) == (source + "A" * 64)[:64]


@pytest.mark.parametrize("source", ["", "ada", "PreSignUp", "PreSignUp_ada@example.com", "PreSignUp_+491711234567"])
def test_a_source_that_may_be_any_text_is_not_shown_in_a_log(source: str) -> None:
    assert public_source(source) == "an unknown source"


def test_names_that_are_no_texts_are_left_out() -> None:
    user = read_token_event(token_event(groupConfiguration={"groupsToOverride": ["a", None, 1, ["b"]]})).subject
    assert user.groups == ("a",)
