"""Reads Cognito's events. Pure: lenient with unexpected shapes, and no error shows a value.

Sources: Amazon Cognito developer guide, "Pre token generation Lambda trigger" and "Post confirmation Lambda trigger".
Published sample events have null, a list or a string where the guide documents an object.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from asyncdb_guard.cognito.values import as_text, is_mapping, items_of
from asyncdb_guard.errors import TriggerEventError

TriggerEvent: TypeAlias = dict[str, Any]
"""The JSON object that Cognito sends and expects back."""

CONFIRM_SIGN_UP = "PostConfirmation_ConfirmSignUp"
MACHINE = "TokenGeneration_ClientCredentials"
"""The trigger source of a machine's token, which has no user. Only version 3 has it."""

_PRE_TOKEN = "TokenGeneration_"  # noqa: S105 -- a trigger, not a secret
_POST_CONFIRMATION = "PostConfirmation_"
_OTHER_TRIGGERS = (
    "CreateAuthChallenge_", "CustomEmailSender_", "CustomMessage_", "CustomSMSSender_", "DefineAuthChallenge_",
    "InboundFederation_", "PostAuthentication_", "PreAuthentication_", "PreSignUp_", "UserMigration_",
    "VerifyAuthChallengeResponse_",
)  # fmt: skip
_VERSIONS = {"2": 2, "3": 3}
_VERSIONS_1 = frozenset({"0", "1"})
"""`0` is what cognito-local sends."""


@dataclass(frozen=True, slots=True, repr=False)
class CognitoUser:
    """The user that an event is about. Its repr shows no personal data."""

    sub: str
    """The user's identity. Look users up by this only."""
    username: str
    """The user name in the user pool, or an empty string. Not an identity: it can be reassigned to another user."""
    email: str | None
    """The e-mail attribute. Not an identity: it can change, and may be unverified."""
    email_verified: bool | None
    """Whether Cognito verified the e-mail; None if the event does not say."""
    attributes: Mapping[str, str]
    """All user attributes as strings: booleans as `true` or `false`, null left out."""
    groups: tuple[str, ...]
    """The user's groups, in Cognito's order of precedence. Empty at post confirmation."""
    scopes: tuple[str, ...]
    """The scopes of the access token. Empty in version 1 and at post confirmation."""
    user_pool_id: str
    client_id: str
    """The app client that the user signs in with, or an empty string."""
    trigger_source: str
    """The reason for the call, such as `TokenGeneration_RefreshTokens`."""
    client_metadata: Mapping[str, str]
    """Metadata that the caller of the sign-in API chose freely. Never authorise from it."""
    region: str
    version: int
    """The version of the event's format, 1, 2 or 3, which determines what the answer can contain."""

    def __repr__(self) -> str:
        return f"<CognitoUser, version {self.version}>"


@dataclass(frozen=True, slots=True, repr=False)
class CognitoClient:
    """The app client that requests a token for itself, with the client credentials grant: a machine without a user."""

    client_id: str
    """The machine's identity."""
    scopes: tuple[str, ...]
    """The scopes that the access token will have."""
    user_pool_id: str
    client_metadata: Mapping[str, str]
    """Metadata that the machine chose freely. Never authorise from it."""
    trigger_source: str
    """`TokenGeneration_ClientCredentials`."""
    region: str
    version: int
    """The version of the event's format: 3."""

    def __repr__(self) -> str:
        return f"<CognitoClient, version {self.version}>"


Subject: TypeAlias = CognitoUser | CognitoClient
"""Who gets the token."""


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest:
    """The contents of a pre token generation event."""

    subject: Subject
    group_configuration: Mapping[str, Any] | None
    """`request.groupConfiguration`; empty if the event has none, None if it is not an object."""


def plain_event(event: object) -> Any:
    """Return the event as the runtime can send it back: a dict, with dicts and lists in it.

    A dict is returned itself. Any other mapping, such as one of Powertools' typed events, is copied into a dict. What
    is no mapping is returned as it is, to be refused.
    """
    if not isinstance(event, dict):
        return _plain(event)
    whole = cast("dict[str, Any]", event)
    for name, value in whole.items():
        plain = _plain(value)
        if plain is not value:
            whole[name] = plain
    return whole


def _plain(value: object) -> object:
    if is_mapping(value):
        items = dict(items_of(value))
        copied = {key: _plain(item) for key, item in items.items()}
        whole: object = value
        return whole if isinstance(value, dict) and all(map(operator.is_, copied.values(), items.values())) else copied
    if isinstance(value, (list, tuple)):
        elements = cast("Sequence[object]", value)
        plain = [_plain(element) for element in elements]
        return elements if isinstance(value, list) and all(map(operator.is_, plain, elements)) else plain
    return value


def trigger_source(event: object) -> str:
    """Return the reason for the call. Raises TriggerEventError if `event` is not a Cognito event."""
    envelope = _object(event)
    if envelope is None:
        raise TriggerEventError("This is not a Cognito event: it is not an object")
    source = envelope.get("triggerSource")
    if not isinstance(source, str) or not source:
        raise _invalid("triggerSource")
    return source


def is_token_source(source: str) -> bool:
    """Whether a pre token generation trigger is called for this source."""
    return source.startswith(_PRE_TOKEN)


def is_post_confirmation_source(source: str) -> bool:
    """Whether a post confirmation trigger is called for this source."""
    return source.startswith(_POST_CONFIRMATION)


def public_source(source: str) -> str:
    """The trigger source for a log: as it is if it begins as one of Cognito's does, since it may be any text."""
    known = (_PRE_TOKEN, _POST_CONFIRMATION, *_OTHER_TRIGGERS)
    return source[:64] if source.startswith(known) and source.replace("_", "").isalpha() else "an unknown source"


def token_source(event: object) -> str:
    """Return the trigger source of a pre token generation event. Raises TriggerEventError if it is another event."""
    source = trigger_source(event)
    if not is_token_source(source):
        raise _invalid("triggerSource")
    return source


def read_token_event(event: TriggerEvent) -> TokenRequest:
    """Read a pre token generation event. Raises TriggerEventError, which names the invalid field."""
    source = token_source(event)
    request = _request(event)
    version = _version(event, request)
    configuration = request.get("groupConfiguration")
    return TokenRequest(
        subject=_read_client(event, request) if source == MACHINE else _read_user(event, request, version),
        group_configuration={} if configuration is None else _object(configuration),
    )


def read_confirmation_event(event: TriggerEvent) -> CognitoUser:
    """Read a post confirmation event. Raises TriggerEventError, which names the invalid field."""
    return _read_user(event, _request(event), 1)


def _read_user(event: TriggerEvent, request: Mapping[str, Any], version: int) -> CognitoUser:
    attributes = _object(request.get("userAttributes"))
    if attributes is None:
        raise _invalid("request.userAttributes")
    sub = attributes.get("sub")
    if not isinstance(sub, str) or not sub:
        raise _invalid("request.userAttributes.sub")
    caller = _object(event.get("callerContext")) or {}
    configuration = _object(request.get("groupConfiguration")) or {}
    texts = _texts(attributes)
    return CognitoUser(
        sub=sub,
        username=_text(event, "userName"),
        email=texts.get("email"),
        email_verified={"true": True, "false": False}.get(texts.get("email_verified", "").lower()),
        attributes=texts,
        groups=_names(configuration.get("groupsToOverride")),
        scopes=_names(request.get("scopes")),
        user_pool_id=_text(event, "userPoolId"),
        client_id=_text(caller, "clientId"),
        trigger_source=event["triggerSource"],
        client_metadata=_texts(_object(request.get("clientMetadata")) or {}),
        region=_text(event, "region"),
        version=version,
    )


def _read_client(event: TriggerEvent, request: Mapping[str, Any]) -> CognitoClient:
    client_id = _text(_object(event.get("callerContext")) or {}, "clientId")
    if not client_id:
        raise _invalid("callerContext.clientId")
    return CognitoClient(
        client_id=client_id,
        scopes=_names(request.get("scopes")),
        user_pool_id=_text(event, "userPoolId"),
        client_metadata=_texts(_object(request.get("clientMetadata")) or {}),
        trigger_source=event["triggerSource"],
        region=_text(event, "region"),
        version=3,
    )


def _request(event: TriggerEvent) -> dict[str, Any]:
    request = _object(event.get("request"))
    if request is None:
        raise _invalid("request")
    return request


def _version(event: TriggerEvent, request: Mapping[str, Any]) -> int:
    """The format of the event. Published version 2 samples have "1" or "string" here, so other fields count, too."""
    version = event.get("version")
    if isinstance(version, int) and not isinstance(version, bool):
        version = as_text(version)
    if not isinstance(version, str) or not version:
        raise _invalid("version")
    if version in _VERSIONS:
        return _VERSIONS[version]
    if version.isdecimal() and version not in _VERSIONS_1:
        raise _invalid("version")
    response = _object(event.get("response")) or {}
    return 2 if "claimsAndScopeOverrideDetails" in response or request.get("scopes") is not None else 1


def _object(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _text(parent: dict[str, Any], name: str) -> str:
    value = parent.get(name)
    return value if isinstance(value, str) else ""


def _texts(parent: dict[str, Any]) -> Mapping[str, str]:
    texts = ((name, as_text(value)) for name, value in parent.items())
    return MappingProxyType({name: text for name, text in texts if text is not None})


def _names(value: object) -> tuple[str, ...]:
    names = cast("list[object]", value) if isinstance(value, list) else []
    return tuple(name for name in names if isinstance(name, str))


def _invalid(field: str) -> TriggerEventError:
    return TriggerEventError(f"This trigger cannot handle the event: {field} is missing or invalid")
