"""Checking claims, and building the response."""

from __future__ import annotations

import enum
import json
from collections import UserDict, namedtuple
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdb_guard.cognito import TokenClaims
from asyncdb_guard.cognito.claims import build_response, check_claims, restore
from asyncdb_guard.cognito.event import TokenRequest, read_token_event
from asyncdb_guard.cognito.values import MAX_DEPTH, MAX_SIZE, ClaimError
from tests.cognito.events import CLIENT_ID, machine_event, token_event

RESERVED = (
    "sub iss aud exp iat nbf jti origin_jti nonce auth_time token_use azp at_hash acr amr identities username client_id"
    " event_id device_key version cognito:groups cognito:roles cognito:preferred_role cognito:username cognito:x"
).split()


def request(version: str = "2", **parts: Any) -> TokenRequest:
    return read_token_event(token_event(version, **parts))


def answered(returned: Any, version: str = "2", **parts: Any) -> dict[str, Any]:
    asked = request(version, **parts)
    response = build_response(check_claims(returned, asked.subject), asked)
    assert json.loads(json.dumps(response, allow_nan=False)) == response
    return response


def in_id(value: Any, version: str = "2") -> Any:
    response = answered({"claim": value}, version)
    details = response["claimsOverrideDetails" if version == "1" else "claimsAndScopeOverrideDetails"]
    return (details if version == "1" else details["idTokenGeneration"])["claimsToAddOrOverride"]["claim"]


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "loud"


Point = namedtuple("Point", "x y")  # noqa: PYI024

VALUES = [
    ("text", "text"),
    (Loud("quiet"), "quiet"),
    (True, True),
    (7, 7),
    (2**53, 2**53),
    (1.5, 1.5),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (UUID("8b1f6a52-6f0e-4b65-9d6c-0a2d1b3c4d5e"), "8b1f6a52-6f0e-4b65-9d6c-0a2d1b3c4d5e"),
    (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (Decimal("1.50"), 1.5),
    (Decimal("1E+3"), 1000),
    (Decimal("1E+15"), 10**15),
    (Decimal(0), 0),
    ([1, None, "a"], [1, None, "a"]),
    (Point(1, 2), [1, 2]),
    ({"a": {"b": (UUID(int=0),)}}, {"a": {"b": ["00000000-0000-0000-0000-000000000000"]}}),
    (UserDict(a=1), {"a": 1}),
    ({Loud("quiet"): 1}, {"quiet": 1}),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_values_become_plain_json(value: Any, expected: Any) -> None:
    plain = in_id(value)
    assert plain == expected
    assert type(plain) is type(expected)


V1_VALUES = [
    ("text", "text"), (True, "true"), (False, "false"), (7, "7"), (1.5, "1.5"), (Decimal("1.50"), "1.5"),
    ([1, "ü", None], '[1,"\\u00fc",null]'), ({"a": True}, '{"a":true}'), (Colour.RED, "red"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), V1_VALUES)
def test_in_version_1_all_values_are_texts(value: Any, expected: str) -> None:
    assert in_id(value, "1") == expected


REFUSED = [
    (float("nan"), "NaN"), (float("-inf"), "infinity"), (Decimal("NaN"), "NaN"), (Decimal("sNaN"), "NaN"),
    (Decimal("Infinity"), "infinity"), (Decimal("0.12345678901234567890123"), "digits"),
    (Decimal("1E+16"), "2\\^53"), (Decimal("1E+999999999"), "2\\^53"), (Decimal("1E-999999"), "digits"),
    (Decimal("12345678901234567.5"), "digits"), (2**53 + 1, "2\\^53"), (-(2**64), "2\\^53"),
    (b"bytes", "bytes"), (bytearray(b"x"), "bytearray"), ({1, 2}, "set"), (frozenset(), "frozenset"),
    (object(), "object"), (lambda: None, "function"), (1j, "complex"), ({1: 2}, "key of type int"),
    ({None: 2}, "key of type NoneType"), ([{"a": [b""]}], "bytes"), ("\ud800", "UTF-8"), ({"\udfff": 1}, "UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_what_json_can_not_carry_is_refused_by_the_claims_name(value: Any, reason: str, version: str) -> None:
    with pytest.raises(ClaimError, match=rf"^The claim 'picture' .*{reason}") as caught:
        answered({"picture": value}, version)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_claim_of_none_is_left_out(version: str) -> None:
    assert answered({"claim": None}, version) == answered({}, version)


def test_no_answer_is_no_claims() -> None:
    assert answered(None) == answered({}) == {
        "claimsAndScopeOverrideDetails": {
            "idTokenGeneration": {"claimsToAddOrOverride": {}},
            "accessTokenGeneration": {"claimsToAddOrOverride": {}},
        }
    }  # fmt: skip


@pytest.mark.parametrize("returned", ["text", 1, True, ["role"], [("role", "x")], {"role"}, b"", object()])
def test_an_answer_that_is_no_mapping_is_refused(returned: Any) -> None:
    with pytest.raises(ClaimError, match="must return a mapping, TokenClaims or None"):
        answered(returned)


@pytest.mark.parametrize("name", [1, None, b"role", "", "\ud800"])
def test_a_claim_needs_a_name(name: Any) -> None:
    with pytest.raises(ClaimError, match=r"^claims contains a name"):
        answered({name: 1})


@pytest.mark.parametrize("version", ["1", "2", "3"])
@pytest.mark.parametrize("name", RESERVED)
def test_reserved_claims_can_be_neither_set_nor_suppressed(name: str, version: str) -> None:
    with pytest.raises(ClaimError, match=f"^The claim '{name}' is reserved and cannot be set"):
        answered({name: "x"}, version)
    with pytest.raises(ClaimError, match=f"^The claim '{name}' is reserved and cannot be suppressed"):
        answered(TokenClaims(suppress=[name]), version)
    with pytest.raises(ClaimError, match=f"^The claim '{name}' is reserved and cannot be set"):
        answered(TokenClaims(id={name: "x"}), version)


def test_dev_claims_may_only_be_suppressed() -> None:
    with pytest.raises(ClaimError, match="'dev:custom'"):
        answered({"dev:custom": "x"})
    assert answered(TokenClaims(suppress=["dev:custom"]), "1") == {
        "claimsOverrideDetails": {"claimsToAddOrOverride": {}, "claimsToSuppress": ["dev:custom"]}
    }


def test_aud_may_be_added_to_the_access_token_if_it_is_the_client() -> None:
    details = answered(TokenClaims(access={"aud": CLIENT_ID}))["claimsAndScopeOverrideDetails"]
    assert details["accessTokenGeneration"]["claimsToAddOrOverride"] == {"aud": CLIENT_ID}
    for claims in (
        TokenClaims(access={"aud": "another"}),
        TokenClaims(access={"aud": [CLIENT_ID]}),
        TokenClaims(id={"aud": CLIENT_ID}),
        TokenClaims({"aud": CLIENT_ID}),
        TokenClaims(suppress_access=["aud"]),
    ):
        with pytest.raises(ClaimError, match="'aud'"):
            answered(claims)


@pytest.mark.parametrize("name", ["phone_number_verified", "email_verified", "updated_at", "address"])
def test_four_claims_of_the_id_token_are_never_lists_or_objects(name: str) -> None:
    for value in ([], {}, ["x"]):
        with pytest.raises(ClaimError, match=rf"'{name}' cannot be a list or an object in the ID token"):
            answered(TokenClaims(id={name: value}))
        answered(TokenClaims(access={name: value}))
        answered({name: value}, "1")  # there it is a text


@pytest.mark.parametrize("version", ["2", "3"])
def test_all_that_token_claims_can_say(version: str) -> None:
    claims = TokenClaims(
        {"both": 1, "tenant": "a"},
        id={"tenant": "b"},
        access={"tenant": "c"},
        suppress=["phone_number"],
        suppress_id=("email", "phone_number"),
        suppress_access={"role"},
        add_scopes=["api/read"],
        suppress_scopes=["openid"],
        groups=["admins"],
    )
    assert answered(claims, version) == {
        "claimsAndScopeOverrideDetails": {
            "idTokenGeneration": {
                "claimsToAddOrOverride": {"both": 1, "tenant": "b"},
                "claimsToSuppress": ["phone_number", "email"],
            },
            "accessTokenGeneration": {
                "claimsToAddOrOverride": {"both": 1, "tenant": "c"},
                "claimsToSuppress": ["phone_number", "role"],
                "scopesToAdd": ["api/read"],
                "scopesToSuppress": ["openid"],
            },
            "groupOverrideDetails": {
                "groupsToOverride": ["admins"],
                "iamRolesToOverride": ["arn:aws:iam::1:role/e"],
            },
        }
    }


@pytest.mark.parametrize(
    "claims",
    [
        TokenClaims(access={"a": 1}),
        TokenClaims(suppress_access=["a"]),
        TokenClaims(add_scopes=["a"]),
        TokenClaims(suppress_scopes=["a"]),
    ],
)
def test_version_1_has_no_access_token_to_speak_of(claims: TokenClaims) -> None:
    with pytest.raises(ClaimError, match=r"needs a version 2 event.*V2_0"):
        answered(claims, "1")


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_groups_are_left_alone_unless_they_are_changed(version: str) -> None:
    (details,) = answered({"role": "x"}, version).values()
    assert "groupOverrideDetails" not in details


@pytest.mark.parametrize(
    "claims",
    [
        TokenClaims(id={"a": 1}),
        TokenClaims(suppress_id=["a"]),
        TokenClaims(groups=["a"]),
        TokenClaims(iam_roles=["a"]),
        TokenClaims(preferred_role="a"),
    ],
)
def test_a_machine_has_no_id_token_and_no_groups(claims: TokenClaims) -> None:
    with pytest.raises(ClaimError, match=r"is for users: a machine has no ID token and no groups\. Remove it\.$"):
        check_claims(claims, read_token_event(machine_event()).subject)


def test_a_machine_has_an_access_token() -> None:
    asked = read_token_event(machine_event())
    allowed = TokenClaims({"both": 1}, access={"a": 1}, suppress=["s"])
    assert build_response(check_claims(allowed, asked.subject), asked) == {
        "claimsAndScopeOverrideDetails": {
            "accessTokenGeneration": {"claimsToAddOrOverride": {"both": 1, "a": 1}, "claimsToSuppress": ["s"]}
        }
    }


CONFIGURATION = {"groupsToOverride": ["a", "b"], "iamRolesToOverride": ["r"], "preferredRole": "r", "new": 1}
KEPT = {"groupsToOverride": ["a", "b"], "iamRolesToOverride": ["r"], "preferredRole": "r"}


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("claims", "change"),
    [
        (TokenClaims(groups=["c"]), {"groupsToOverride": ["c"]}),
        (TokenClaims(groups=[]), {"groupsToOverride": []}),
        (TokenClaims(iam_roles=("s",)), {"iamRolesToOverride": ["s"]}),
        (TokenClaims(preferred_role="s"), {"preferredRole": "s"}),
    ],
)
def test_a_change_of_groups_keeps_all_the_rest(claims: TokenClaims, change: dict[str, Any], version: str) -> None:
    (details,) = answered(claims, version, groupConfiguration=CONFIGURATION).values()
    assert details["groupOverrideDetails"] == KEPT | change


def test_groups_that_can_not_be_read_are_never_replaced() -> None:
    with pytest.raises(ClaimError, match="groupConfiguration of this event is not an object"):
        answered(TokenClaims(preferred_role="s"), groupConfiguration=["a"])
    answered({"role": "x"}, groupConfiguration=["a"])


@pytest.mark.parametrize(
    "fields",
    [
        {"add_scopes": "admin"}, {"add_scopes": ["a b"]}, {"add_scopes": [""]}, {"add_scopes": [1]},
        {"suppress_scopes": 5}, {"suppress": "email"}, {"suppress_id": b"email"}, {"suppress_access": None},
        {"groups": "admins"}, {"groups": [None]}, {"iam_roles": "r"}, {"preferred_role": 5}, {"preferred_role": ""},
        {"claims": ["role"]}, {"id": None}, {"access": "x"}, {"groups": ["\ud800"]},
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_kind_is_named(fields: dict[str, Any]) -> None:
    (field,) = fields
    with pytest.raises(ClaimError, match=f"^{field} "):
        answered(TokenClaims(**fields))


def test_a_scope_with_white_space_is_not_shown() -> None:
    with pytest.raises(ClaimError) as caught:
        answered(TokenClaims(add_scopes=["secret scope"]))
    assert "secret" not in str(caught.value)


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_depth_is_bounded() -> None:
    in_id(nested(MAX_DEPTH))
    with pytest.raises(ClaimError, match="'claim' is nested deeper than 8 levels"):
        in_id(nested(MAX_DEPTH + 1))
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ClaimError, match="deeper"):
        in_id(circle)


def test_size_is_bounded_over_both_tokens() -> None:
    in_id("x" * (MAX_SIZE // 2 - 500))
    with pytest.raises(ClaimError, match="'claim' makes the claims larger than 16384 bytes"):
        in_id("x" * (MAX_SIZE // 2 + 1))
    with pytest.raises(ClaimError, match="'claim' makes the claims larger"):
        in_id([None] * MAX_SIZE)
    with pytest.raises(ClaimError, match=r"^The claims take \d+ bytes of JSON"):
        in_id("\x00" * (MAX_SIZE // 4))  # six bytes of JSON each
    with pytest.raises(ClaimError, match=r"^The claims take \d+ bytes of JSON"):
        answered(TokenClaims(groups=["x" * 100] * 200))


def test_claims_that_are_left_out_count_little() -> None:
    assert answered({f"column{number}": None for number in range(MAX_SIZE // 2)}) == answered({})


def test_claims_of_just_the_size_that_is_allowed() -> None:
    spare = MAX_SIZE - len(check_claims(TokenClaims(groups=["x"]), request().subject).dump())
    assert answered(TokenClaims(groups=["x" * (1 + spare)]))
    with pytest.raises(ClaimError, match=r"^The claims take 16385 bytes of JSON; the maximum is 16384\.$"):
        answered(TokenClaims(groups=["x" * (2 + spare)]))


def test_a_wide_and_deep_value_is_refused_in_no_time() -> None:
    value: Any = "x"
    for _ in range(MAX_DEPTH):
        value = [value] * 1000
    with pytest.raises(ClaimError, match="larger"):
        in_id(value)


def test_names_in_messages_are_short_and_plain() -> None:
    with pytest.raises(ClaimError) as caught:
        answered({"ü\n" * 100: b""})
    assert str(caught.value).isascii()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(ClaimError, match=f"^The claim '{'x' * 64}' contains"):
        answered({"x" * 65: b""})


def test_a_repr_shows_no_claims() -> None:
    assert "secret" not in repr(TokenClaims({"a": "secret"}, id={"a": "secret"}, groups=["secret"]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.from_regex(r"[a-z]{4}_x", fullmatch=True), json_values, max_size=4))
@pytest.mark.slow
def test_plain_json_comes_through_unchanged_and_survives_a_cache(claims: dict[str, Any]) -> None:
    asked = request("2")
    checked = check_claims(claims, asked.subject)
    assert checked.id == checked.access == {name: value for name, value in claims.items() if value is not None}
    assert restore(checked.dump(), asked.subject) == checked
    assert checked.empty is not bool(checked.id)


@pytest.mark.parametrize("version", ["1", "2"])
def test_everything_survives_a_cache(version: str) -> None:
    asked = request(version)
    claims = TokenClaims({"a": [1]}, suppress=["b"], groups=[], iam_roles=["r"], preferred_role="r")
    checked = check_claims(claims, asked.subject)
    assert restore(checked.dump(), asked.subject) == checked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        "5",
        '{"id":{"sub":"x"}}',
        '{"id":[]}',
        '{"unknown":1}',
        "[" * 100_000,
        '{"id":{"a":NaN}}',
    ],
)
def test_an_invalid_cached_text_is_not_restored(text: str) -> None:
    assert restore(text, request().subject) is None
