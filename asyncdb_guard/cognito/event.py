"""Reading Cognito's events. Pure: lenient in what it reads, and silent about every value.

The shapes are those of the Amazon Cognito developer guide, "Pre token generation Lambda trigger" and "Post
confirmation Lambda trigger"; published samples have null, a list or a text where the guide promises an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from asyncdb_guard.cognito.values import as_text
from asyncdb_guard.errors import TriggerEventError

TriggerEvent: TypeAlias = dict[str, Any]
"""What Cognito sends, and wants back."""

CONFIRM_SIGN_UP = "PostConfirmation_ConfirmSignUp"
MACHINE = "TokenGeneration_ClientCredentials"
"""The source of a machine's token. It has no user, so there is nobody whose claims could be loaded."""

_PRE_TOKEN = "TokenGeneration_"  # noqa: S105 -- a trigger, not a secret
_VERSIONS = {"2": 2, "3": 3}


@dataclass(frozen=True, slots=True, repr=False)
class CognitoUser:
    """Who an event is about. Its repr shows nothing personal."""

    sub: str
    """The user's identity. The one thing to look a user up by."""
    username: str
    """The name in the user pool, or an empty text. Not the identity: it may be given to another user later."""
    email: str | None
    """The e-mail attribute. Not the identity: users change it, and it may not be verified."""
    email_verified: bool | None
    """Whether Cognito knows the e-mail to be the user's; None if the event does not say."""
    attributes: Mapping[str, str]
    """All user attributes as texts: true and false in lower case, null left out."""
    groups: tuple[str, ...]
    """The user's groups, in Cognito's order of precedence. Empty at post confirmation."""
    scopes: tuple[str, ...]
    """The scopes that the access token will have. Empty in version 1 and at post confirmation."""
    user_pool_id: str
    client_id: str
    """The app client that the user signs in with, or an empty text."""
    trigger_source: str
    """Why the trigger was called, such as `TokenGeneration_RefreshTokens`."""
    client_metadata: Mapping[str, str]
    """What the caller of the sign-in API chose to say. Never authorise from it."""
    region: str
    version: int
    """The shape of the event, 1, 2 or 3: what its answer can say."""

    def __repr__(self) -> str:
        return f"<CognitoUser, version {self.version}>"


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest:
    """What a pre token event asks: for whom, and with which groups and roles so far."""

    user: CognitoUser
    group_configuration: Mapping[str, Any] | None
    """`request.groupConfiguration`; empty if the event has none, None if it is no object."""


def trigger_source(event: object) -> str:
    """Return why Cognito called. Raises TriggerEventError if this is no event at all."""
    envelope = _object(event)
    if envelope is None:
        raise TriggerEventError("This is not a Cognito event: it is no object")
    source = envelope.get("triggerSource")
    if not isinstance(source, str) or not source:
        raise _unfit("triggerSource")
    return source


def read_token_event(event: TriggerEvent) -> TokenRequest:
    """Read a pre token generation event. Raises TriggerEventError, which names the field that does not fit."""
    if not trigger_source(event).startswith(_PRE_TOKEN):
        raise _unfit("triggerSource")
    request = _request(event)
    configuration = request.get("groupConfiguration")
    return TokenRequest(
        user=_read_user(event, request, _version(event, request)),
        group_configuration={} if configuration is None else _object(configuration),
    )


def read_confirmation_event(event: TriggerEvent) -> CognitoUser:
    """Read a post confirmation event. Raises TriggerEventError, which names the field that does not fit."""
    return _read_user(event, _request(event), 1)


def _read_user(event: TriggerEvent, request: Mapping[str, Any], version: int) -> CognitoUser:
    attributes = _object(request.get("userAttributes"))
    if attributes is None:
        raise _unfit("request.userAttributes")
    sub = attributes.get("sub")
    if not isinstance(sub, str) or not sub:
        raise _unfit("request.userAttributes.sub")
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


def _request(event: TriggerEvent) -> dict[str, Any]:
    request = _object(event.get("request"))
    if request is None:
        raise _unfit("request")
    return request


def _version(event: TriggerEvent, request: Mapping[str, Any]) -> int:
    """The shape of the event. Published samples of version 2 say "1" or "string", so other marks count, too."""
    said = event.get("version")
    if isinstance(said, int) and not isinstance(said, bool):
        said = as_text(said)
    if not isinstance(said, str) or not said:
        raise _unfit("version")
    if said in _VERSIONS:
        return _VERSIONS[said]
    if said.isdecimal() and said != "1":
        raise _unfit("version")
    response = _object(event.get("response")) or {}
    return 2 if "claimsAndScopeOverrideDetails" in response or request.get("scopes") is not None else 1


def _object(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _text(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def _texts(holder: dict[str, Any]) -> Mapping[str, str]:
    texts = ((name, as_text(value)) for name, value in holder.items())
    return MappingProxyType({name: text for name, text in texts if text is not None})


def _names(value: object) -> tuple[str, ...]:
    names = cast("list[object]", value) if isinstance(value, list) else []
    return tuple(name for name in names if isinstance(name, str))


def _unfit(field: str) -> TriggerEventError:
    return TriggerEventError(f"This trigger can't handle the event: {field} is missing or does not fit")
