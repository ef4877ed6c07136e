"""What Cognito sends: events as the Amazon Cognito developer guide has them, with one line each.

Source: "Pre token generation Lambda trigger" and "Post confirmation Lambda trigger" of that guide.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdb_guard.cognito.event import (
    CONFIRM_SIGN_UP,
    MACHINE,
    CognitoClient,
    CognitoUser,
    TriggerEvent,
    read_token_event,
)

REGION = "eu-central-1"
USER_POOL_ID = f"{REGION}_Example"
CLIENT_ID = "example-client"
ROLE = "arn:aws:iam::123456789012:role/editor"


def token_event(
    version: int | str = 2,
    *,
    sub: str | None = None,
    groups: Sequence[str] = ("editors",),
    roles: Sequence[str] = (ROLE,),
    scopes: Sequence[str] = ("openid", "email"),
    attributes: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    source: str = "TokenGeneration_HostedAuth",
    client_id: str = CLIENT_ID,
) -> TriggerEvent:
    """A pre token generation event of version 1, 2 or 3.

    `sub`: by default a new one. `groups` and `roles`: the user's, as in `request.groupConfiguration`. `scopes`: of the
    access token; version 1 has none. `attributes`: more user attributes, and stronger than the usual ones. `metadata`:
    `request.clientMetadata`, left out by default. `source`: why Cognito asks, the event's `triggerSource`.
    """
    details = "claimsOverrideDetails" if str(version) == "1" else "claimsAndScopeOverrideDetails"
    request: dict[str, Any] = {
        "userAttributes": _attributes(sub, attributes),
        "groupConfiguration": {
            "groupsToOverride": list(groups),
            "iamRolesToOverride": list(roles),
            "preferredRole": None,
        },
    }
    if str(version) != "1":
        request["scopes"] = list(scopes)
    if metadata is not None:
        request["clientMetadata"] = dict(metadata)
    return _envelope(str(version), source, request, {details: None}, client_id)


def machine_event(
    *, scopes: Sequence[str] = ("orders/read",), metadata: Mapping[str, str] | None = None, client_id: str = CLIENT_ID
) -> TriggerEvent:
    """A pre token generation event, version 3, for a machine's token: there is no user in it."""
    event = token_event(3, groups=(), roles=(), scopes=scopes, metadata=metadata, source=MACHINE, client_id=client_id)
    event["userName"] = None
    event["request"]["userAttributes"] = None
    return event


def confirmation_event(
    *,
    sub: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    source: str = CONFIRM_SIGN_UP,
    client_id: str = CLIENT_ID,
) -> TriggerEvent:
    """A post confirmation event; `sub`, `attributes` and `source` as in `token_event`."""
    return _envelope("1", source, {"userAttributes": _attributes(sub, attributes)}, {}, client_id)


def cognito_user(sub: str | None = None, version: int | str = 2, **details: Any) -> CognitoUser:
    """The user that a callback is given for `token_event(version, sub=sub, **details)`: for tests of the callback."""
    user = read_token_event(token_event(version, sub=sub, **details)).subject
    assert isinstance(user, CognitoUser)
    return user


def cognito_client(**details: Any) -> CognitoClient:
    """The machine that a callback is given for `machine_event(**details)`: for tests of the callback."""
    client = read_token_event(machine_event(**details)).subject
    assert isinstance(client, CognitoClient)
    return client


def id_claims(event: TriggerEvent) -> dict[str, Any]:
    """What an answered event of version 2 or 3 puts into the ID token."""
    return _claims(event, "idTokenGeneration")


def access_claims(event: TriggerEvent) -> dict[str, Any]:
    """What an answered event of version 2 or 3 puts into the access token."""
    return _claims(event, "accessTokenGeneration")


def _claims(event: TriggerEvent, token: str) -> dict[str, Any]:
    details: dict[str, dict[str, Any]] = event["response"]["claimsAndScopeOverrideDetails"] or {}
    claims: dict[str, Any] = details.get(token, {}).get("claimsToAddOrOverride", {})
    return claims


def _attributes(sub: str | None, more: Mapping[str, Any] | None) -> dict[str, Any]:
    usual = {
        "sub": sub or str(uuid.uuid4()),
        "email": "ada@example.com",
        "email_verified": "true",
        "cognito:user_status": "CONFIRMED",
    }
    return {**usual, **(more or {})}


def _envelope(version: str, source: str, request: dict[str, Any], response: Any, client_id: str) -> TriggerEvent:
    return {
        "version": version,
        "triggerSource": source,
        "region": REGION,
        "userPoolId": USER_POOL_ID,
        "userName": "ada",
        "callerContext": {"awsSdkVersion": "aws-sdk-unknown-unknown", "clientId": client_id},
        "request": request,
        "response": response,
    }
