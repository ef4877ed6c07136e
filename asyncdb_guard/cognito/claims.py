"""What may go into a token, and the answer that says so in the event's own shape. Pure.

The rules are those of the Amazon Cognito developer guide, "Pre token generation Lambda trigger": what it says cannot
be added, changed or suppressed is refused here, as it does not say what Cognito would do with it.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, cast

from asyncdb_guard.cognito.event import CognitoUser, TokenRequest
from asyncdb_guard.cognito.values import MAX_SIZE, ClaimError, Json, Values, as_text, is_mapping, is_utf8, pairs, shown

_RESERVED = frozenset(
    "acr amr at_hash aud auth_time azp client_id device_key event_id exp iat identities iss jti nbf nonce origin_jti"
    " sub token_use username version".split()
)
_COGNITOS = ("cognito:",)
_SIMPLE_IN_ID = frozenset({"address", "email_verified", "phone_number_verified", "updated_at"})
_GROUP_KEYS = ("groupsToOverride", "iamRolesToOverride", "preferredRole")


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a claims callback returns that has more to say than a mapping can. Checked once it is returned."""

    claims: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    """For both tokens; in version 1, which has no say in the access token, for the ID token."""
    _: KW_ONLY
    id: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    """For the ID token alone; stronger than `claims`."""
    access: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    """For the access token alone; stronger than `claims`. Not in version 1."""
    suppress: Collection[str] = ()
    """Claims to leave out of both tokens (version 1: the ID token). Suppressing is stronger than adding."""
    suppress_id: Collection[str] = ()
    suppress_access: Collection[str] = ()
    """Not in version 1."""
    add_scopes: Collection[str] = ()
    """Scopes for the access token. Not in version 1."""
    suppress_scopes: Collection[str] = ()
    """Not in version 1."""
    groups: Collection[str] | None = field(default=None, repr=False)
    """The groups in the tokens, in place of the user's own. None keeps those; an empty list removes them."""
    iam_roles: Collection[str] | None = field(default=None, repr=False)
    """The IAM roles that go with the groups; None keeps them."""
    preferred_role: str | None = field(default=None, repr=False)
    """The IAM role preferred among them; None keeps it."""


@dataclass(frozen=True, slots=True, repr=False)
class Overrides:
    """Checked claims, in plain JSON values that nobody changes any more."""

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
        """Whether they change nothing."""
        return self == _NOTHING

    def dump(self) -> str:
        """As JSON text, for a cache."""
        # not asdict(), which copies every value first
        return json.dumps({part.name: getattr(self, part.name) for part in fields(self)}, separators=(",", ":"))


_NOTHING = Overrides({}, {}, [], [], [], [], None, None, None)


def restore(text: str, user: CognitoUser) -> Overrides | None:
    """Read what `Overrides.dump` wrote, or return None. Checked again: a shared cache is not ours alone."""
    try:
        return check(TokenClaims(**json.loads(text)), user)
    except (ClaimError, TypeError, ValueError, RecursionError):
        return None


def check(returned: object, user: CognitoUser) -> Overrides:
    """Check what a callback returned for `user`. Raises ClaimError, which names the claim and never its value.

    None is no claims. A claim of None is left out. In version 1 all values become texts (see `as_text`).
    """
    said = _as_claims(returned)
    values = Values()
    both, suppressed = _mapping("claims", said.claims), _suppressed("suppress", said.suppress)
    for_access, not_for_access = both, suppressed
    if user.version == 1:
        _refuse_access(said)
        for_access, not_for_access = {}, []
    overrides = Overrides(
        id=_token(values, both | _mapping("id", said.id), user),
        access=_token(values, for_access | _mapping("access", said.access), user, access=True),
        suppress_id=_merged(suppressed, _suppressed("suppress_id", said.suppress_id)),
        suppress_access=_merged(not_for_access, _suppressed("suppress_access", said.suppress_access)),
        add_scopes=_scopes("add_scopes", said.add_scopes),
        suppress_scopes=_scopes("suppress_scopes", said.suppress_scopes),
        groups=None if said.groups is None else _names("groups", said.groups),
        iam_roles=None if said.iam_roles is None else _names("iam_roles", said.iam_roles),
        preferred_role=None if said.preferred_role is None else _name("preferred_role", said.preferred_role),
    )
    size = len(overrides.dump())
    if size > MAX_SIZE:
        raise ClaimError(f"The claims come to {size} bytes of JSON; {MAX_SIZE} is the most.")
    return overrides


def answer(overrides: Overrides, request: TokenRequest) -> dict[str, Any]:
    """Build the event's `response`, in the shape of its version."""
    id_part = _part(overrides.id, claimsToSuppress=overrides.suppress_id)
    if request.user.version == 1:
        name, details = "claimsOverrideDetails", id_part
    else:
        access_part = _part(
            overrides.access,
            claimsToSuppress=overrides.suppress_access,
            scopesToAdd=overrides.add_scopes,
            scopesToSuppress=overrides.suppress_scopes,
        )
        name = "claimsAndScopeOverrideDetails"
        details = {"idTokenGeneration": id_part, "accessTokenGeneration": access_part}
    groups = _group_details(overrides, request.group_configuration)
    if groups is not None:
        details["groupOverrideDetails"] = groups
    return copy.deepcopy({name: details})  # one load may serve many callers, and each may change its own


def _part(claims: Mapping[str, Json], **lists: list[str]) -> dict[str, Any]:
    return {"claimsToAddOrOverride": claims} | {name: names for name, names in lists.items() if names}


def _group_details(overrides: Overrides, configuration: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """None, or the user's whole configuration with the changes: what Cognito is told replaces it all."""
    said = (overrides.groups, overrides.iam_roles, overrides.preferred_role)
    changes = {key: value for key, value in zip(_GROUP_KEYS, said, strict=True) if value is not None}
    if not changes:
        return None
    if configuration is None:
        raise ClaimError("The groups can't be changed: request.groupConfiguration of this event is no object.")
    kept = {key: configuration[key] for key in _GROUP_KEYS if configuration.get(key) is not None}
    return kept | changes


def _as_claims(returned: object) -> TokenClaims:
    if isinstance(returned, TokenClaims):
        return returned
    if returned is None:
        return TokenClaims()
    if is_mapping(returned):
        return TokenClaims(dict(pairs(returned)))  # type: ignore[arg-type]  # checked below
    kind = type(returned).__name__
    raise ClaimError(f"The claims callback returned a {kind}; it must return a mapping, TokenClaims or None.")


def _refuse_access(said: TokenClaims) -> None:
    for name in ("access", "suppress_access", "add_scopes", "suppress_scopes"):
        if getattr(said, name):
            raise ClaimError(
                f"{name} needs a version 2 event, and this is version 1: set the trigger's LambdaVersion to V2_0."
            )


def _token(values: Values, claims: dict[object, object], user: CognitoUser, *, access: bool = False) -> dict[str, Json]:
    token: dict[str, Json] = {}
    for key, value in claims.items():
        name = _name("claims", key)
        plain = values.plain(name, value)
        if user.version == 1:
            plain = as_text(plain)
        if plain is None:
            continue
        if not (access and name == "aud" and plain == user.client_id):
            _refuse_reserved(name, "set", (*_COGNITOS, "dev:"))
        if not access and name in _SIMPLE_IN_ID and isinstance(plain, (list, dict)):
            raise ClaimError(f"The claim {shown(name)} can't be a list or an object in the ID token.")
        token[name] = plain
    return token


def _refuse_reserved(name: str, change: str, prefixes: tuple[str, ...]) -> None:
    if name in _RESERVED or name.startswith(prefixes):
        raise ClaimError(f"The claim {shown(name)} is reserved and can't be {change}; for groups, see TokenClaims.")


def _suppressed(part: str, claims: Collection[str]) -> list[str]:
    names = _names(part, claims)
    for name in names:
        _refuse_reserved(name, "suppressed", _COGNITOS)
    return names


def _merged(*lists: list[str]) -> list[str]:
    return list(dict.fromkeys(itertools.chain(*lists)))


def _scopes(part: str, scopes: Collection[str]) -> list[str]:
    names = _names(part, scopes)
    for name in names:
        if any(character.isspace() for character in name):
            raise ClaimError(f"{part} holds a scope with white space in it.")
    return names


def _mapping(part: str, value: object) -> dict[object, object]:
    if not is_mapping(value):
        raise ClaimError(f"{part} of TokenClaims must be a mapping, not a {type(value).__name__}.")
    return dict(pairs(value))


def _names(part: str, value: object) -> list[str]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        raise ClaimError(f"{part} of TokenClaims must be a list of names, not a {type(value).__name__}.")
    return [_name(part, name) for name in cast("Collection[object]", value)]


def _name(part: str, value: object) -> str:
    if not isinstance(value, str):
        raise ClaimError(f"{part} holds a {type(value).__name__} where a name, a str, belongs.")
    if not value or not is_utf8(value):
        raise ClaimError(f"{part} holds a name that is empty or that UTF-8 can't carry.")
    return str.__str__(value)
