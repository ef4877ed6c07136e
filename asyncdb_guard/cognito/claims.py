"""Checks the claims that a callback returned, and builds the response in the event's own version. Pure.

Source: Amazon Cognito developer guide, "Pre token generation Lambda trigger". Claims that cannot be added, changed or
suppressed are refused here, because what Cognito does with them is not documented.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, cast

from asyncdb_guard.cognito.event import CognitoClient, CognitoUser, Subject, TokenRequest
from asyncdb_guard.cognito.values import (
    MAX_SIZE,
    ClaimConverter,
    ClaimError,
    Json,
    as_text,
    is_mapping,
    is_utf8,
    items_of,
    quoted,
)

_RESERVED = frozenset(
    "acr amr at_hash aud auth_time azp client_id device_key event_id exp iat identities iss jti nbf nonce origin_jti"
    " sub token_use username version".split()
)
_NOT_SUPPRESSIBLE = ("cognito:",)
_NOT_SETTABLE = ("cognito:", "dev:")
_SCALAR_IN_ID_TOKEN = frozenset({"address", "email_verified", "phone_number_verified", "updated_at"})
_GROUP_KEYS = ("groupsToOverride", "iamRolesToOverride", "preferredRole")


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a claims callback returns if a mapping is not enough. Validated after it is returned."""

    claims: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    """Claims for both tokens; in version 1, which cannot change the access token, for the ID token."""
    _: KW_ONLY
    id: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    """Claims for the ID token only. They override `claims`."""
    access: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    """Claims for the access token only. They override `claims`. Not in version 1."""
    suppress: Collection[str] = ()
    """Claims to remove from both tokens (version 1: from the ID token). Suppressing overrides adding."""
    suppress_id: Collection[str] = ()
    """Claims to remove from the ID token only."""
    suppress_access: Collection[str] = ()
    """Claims to remove from the access token only. Not in version 1."""
    add_scopes: Collection[str] = ()
    """Scopes to add to the access token. Not in version 1."""
    suppress_scopes: Collection[str] = ()
    """Scopes to remove from the access token. Not in version 1."""
    groups: Collection[str] | None = field(default=None, repr=False)
    """The groups in the tokens, instead of the user's own. None keeps those; an empty list removes them."""
    iam_roles: Collection[str] | None = field(default=None, repr=False)
    """The IAM roles of the groups. None keeps the user's own."""
    preferred_role: str | None = field(default=None, repr=False)
    """The preferred IAM role. None keeps the user's own."""


@dataclass(frozen=True, slots=True, repr=False)
class Overrides:
    """Checked claims as JSON values. Shared between callers, so never modified."""

    id: Mapping[str, Json]
    access: Mapping[str, Json]
    suppress_id: list[str]
    suppress_access: list[str]
    add_scopes: list[str]
    suppress_scopes: list[str]
    groups: list[str] | None
    iam_roles: list[str] | None
    preferred_role: str | None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to override."""
        return self == _NOTHING

    def dump(self) -> str:
        """As JSON text, for a cache."""
        # not asdict(), which deep-copies every value
        return json.dumps({part.name: getattr(self, part.name) for part in fields(self)}, separators=(",", ":"))


_NOTHING = Overrides({}, {}, [], [], [], [], None, None, None)


def restore(text: str, subject: Subject) -> Overrides | None:
    """Parse what `Overrides.dump` wrote, or return None if it is invalid: others may write to a shared cache."""
    try:
        return check_claims(TokenClaims(**json.loads(text)), subject)
    except (ClaimError, TypeError, ValueError, RecursionError):
        return None


def check_claims(returned: object, subject: Subject) -> Overrides:
    """Check what a callback returned for `subject`. Raises ClaimError, which names the claim, never its value.

    None means no claims. A claim whose value is None is left out. In version 1 all values become strings (`as_text`). A
    machine gets an access token only.
    """
    claims = _as_token_claims(returned)
    converter = ClaimConverter()
    both, suppressed = _mapping("claims", claims.claims), _suppressed("suppress", claims.suppress)
    for_id, not_for_id = for_access, not_for_access = both, suppressed
    if isinstance(subject, CognitoClient):
        _refuse_what_machines_lack(claims)
        for_id, not_for_id = {}, []
    elif subject.version == 1:
        _refuse_access(claims)
        for_access, not_for_access = {}, []
    overrides = Overrides(
        id=_token(converter, for_id | _mapping("id", claims.id), subject),
        access=_token(converter, for_access | _mapping("access", claims.access), subject, access=True),
        suppress_id=_merged(not_for_id, _suppressed("suppress_id", claims.suppress_id)),
        suppress_access=_merged(not_for_access, _suppressed("suppress_access", claims.suppress_access)),
        add_scopes=_scopes("add_scopes", claims.add_scopes),
        suppress_scopes=_scopes("suppress_scopes", claims.suppress_scopes),
        groups=None if claims.groups is None else _names("groups", claims.groups),
        iam_roles=None if claims.iam_roles is None else _names("iam_roles", claims.iam_roles),
        preferred_role=None if claims.preferred_role is None else _name("preferred_role", claims.preferred_role),
    )
    size = len(overrides.dump())
    if size > MAX_SIZE:
        raise ClaimError(f"The claims take {size} bytes of JSON; the maximum is {MAX_SIZE}.")
    return overrides


def build_response(overrides: Overrides, request: TokenRequest) -> dict[str, Any]:
    """Build the `response` of the event, in the format of its version."""
    id_part = _part(overrides.id, claimsToSuppress=overrides.suppress_id)
    if request.subject.version == 1:
        name, details = "claimsOverrideDetails", id_part
    else:
        access_part = _part(
            overrides.access,
            claimsToSuppress=overrides.suppress_access,
            scopesToAdd=overrides.add_scopes,
            scopesToSuppress=overrides.suppress_scopes,
        )
        name, details = "claimsAndScopeOverrideDetails", {"accessTokenGeneration": access_part}
        if isinstance(request.subject, CognitoUser):
            details = {"idTokenGeneration": id_part, **details}
    groups = _group_details(overrides, request.group_configuration)
    if groups is not None:
        details["groupOverrideDetails"] = groups
    return copy.deepcopy({name: details})  # several callers may share one load, and each may modify its answer


def _part(claims: Mapping[str, Json], **lists: list[str]) -> dict[str, Any]:
    return {"claimsToAddOrOverride": claims} | {name: names for name, names in lists.items() if names}


def _group_details(overrides: Overrides, configuration: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """None, or the user's complete configuration with the changes: Cognito replaces all of it."""
    values = (overrides.groups, overrides.iam_roles, overrides.preferred_role)
    changes = {key: value for key, value in zip(_GROUP_KEYS, values, strict=True) if value is not None}
    if not changes:
        return None
    if configuration is None:
        raise ClaimError("The groups cannot be changed: request.groupConfiguration of this event is not an object.")
    unchanged = {key: configuration[key] for key in _GROUP_KEYS if configuration.get(key) is not None}
    return unchanged | changes


def _as_token_claims(returned: object) -> TokenClaims:
    if isinstance(returned, TokenClaims):
        return returned
    if returned is None:
        return TokenClaims()
    if is_mapping(returned):
        return TokenClaims(dict(items_of(returned)))  # type: ignore[arg-type]  # checked below
    kind = type(returned).__name__
    raise ClaimError(f"The claims callback returned a {kind}; it must return a mapping, TokenClaims or None.")


def _refuse_access(claims: TokenClaims) -> None:
    for name in ("access", "suppress_access", "add_scopes", "suppress_scopes"):
        if getattr(claims, name):
            raise ClaimError(
                f"{name} needs a version 2 event, but this is version 1. Set the trigger's LambdaVersion to V2_0."
            )


def _refuse_what_machines_lack(claims: TokenClaims) -> None:
    for name in ("id", "suppress_id", "groups", "iam_roles", "preferred_role"):
        if getattr(claims, name):
            raise ClaimError(f"{name} is for users: a machine has no ID token and no groups. Remove it.")


def _token(
    converter: ClaimConverter, claims: dict[object, object], subject: Subject, *, access: bool = False
) -> dict[str, Json]:
    token: dict[str, Json] = {}
    for key, value in claims.items():
        name = _name("claims", key)
        converted = converter.convert(name, value)
        if subject.version == 1:
            converted = as_text(converted)
        if converted is None:
            continue
        if not (access and name == "aud" and converted == subject.client_id):
            _refuse_reserved(name, "set", _NOT_SETTABLE)
        if not access and name in _SCALAR_IN_ID_TOKEN and isinstance(converted, (list, dict)):
            raise ClaimError(f"The claim {quoted(name)} cannot be a list or an object in the ID token.")
        token[name] = converted
    return token


def _refuse_reserved(name: str, change: str, prefixes: tuple[str, ...]) -> None:
    if name in _RESERVED or name.startswith(prefixes):
        raise ClaimError(
            f"The claim {quoted(name)} is reserved and cannot be {change}. For groups and roles, use TokenClaims."
        )


def _suppressed(part: str, claims: Collection[str]) -> list[str]:
    names = _names(part, claims)
    for name in names:
        _refuse_reserved(name, "suppressed", _NOT_SUPPRESSIBLE)
    return names


def _merged(*lists: list[str]) -> list[str]:
    return list(dict.fromkeys(itertools.chain(*lists)))


def _scopes(part: str, scopes: Collection[str]) -> list[str]:
    names = _names(part, scopes)
    for name in names:
        if any(character.isspace() for character in name):
            raise ClaimError(f"{part} contains a scope with white space. A scope must be a single word.")
    return names


def _mapping(part: str, value: object) -> dict[object, object]:
    if not is_mapping(value):
        raise ClaimError(f"{part} of TokenClaims must be a mapping, not a {type(value).__name__}.")
    return dict(items_of(value))


def _names(part: str, value: object) -> list[str]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        raise ClaimError(f"{part} of TokenClaims must be a list of str, not a {type(value).__name__}.")
    return [_name(part, name) for name in cast("Collection[object]", value)]


def _name(part: str, value: object) -> str:
    if not isinstance(value, str):
        raise ClaimError(f"{part} contains a name of type {type(value).__name__}; names must be str.")
    if not value or not is_utf8(value):
        raise ClaimError(f"{part} contains a name that is empty or that UTF-8 cannot encode.")
    return str.__str__(value)
