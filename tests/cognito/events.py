"""Cognito's events, as the developer guide has them."""

from __future__ import annotations

import uuid
from typing import Any

POOL_ID = "eu-central-1_Example"
CLIENT_ID = "example-client"


def user_attributes(sub: str | None = None, **attributes: Any) -> dict[str, Any]:
    return {
        "sub": sub or str(uuid.uuid4()),
        "email": "ada@example.com",
        "email_verified": "true",
        "cognito:user_status": "CONFIRMED",
    } | attributes


def envelope(version: str, source: str, request: dict[str, Any], response: Any) -> dict[str, Any]:
    return {
        "version": version,
        "triggerSource": source,
        "region": "eu-central-1",
        "userPoolId": POOL_ID,
        "userName": "ada",
        "callerContext": {"awsSdkVersion": "aws-sdk-unknown-unknown", "clientId": CLIENT_ID},
        "request": request,
        "response": response,
    }


def token_event(
    version: str = "2", *, sub: str | None = None, source: str = "TokenGeneration_HostedAuth", **request: Any
) -> dict[str, Any]:
    """A pre token generation event; `request` replaces parts of its request."""
    groups = {"groupsToOverride": ["editors"], "iamRolesToOverride": ["arn:aws:iam::1:role/e"], "preferredRole": None}
    details = "claimsOverrideDetails" if version == "1" else "claimsAndScopeOverrideDetails"
    scopes = {} if version == "1" else {"scopes": ["openid", "email"]}
    return envelope(
        version,
        source,
        {"userAttributes": user_attributes(sub), "groupConfiguration": groups} | scopes | request,
        {details: None},
    )


def confirmation_event(sub: str | None = None, source: str = "PostConfirmation_ConfirmSignUp") -> dict[str, Any]:
    """A post confirmation event."""
    return envelope("1", source, {"userAttributes": user_attributes(sub)}, {})


def machine_event() -> dict[str, Any]:
    """A pre token generation event for a machine, which has no user."""
    event = token_event("3", source="TokenGeneration_ClientCredentials", userAttributes=None)
    return event | {"userName": None}


def id_claims(event: dict[str, Any]) -> dict[str, Any]:
    """What a version 2 or 3 event was answered for the ID token."""
    claims: dict[str, Any] = event["response"]["claimsAndScopeOverrideDetails"]["idTokenGeneration"][
        "claimsToAddOrOverride"
    ]
    return claims


def access_claims(event: dict[str, Any]) -> dict[str, Any]:
    """What a version 2 or 3 event was answered for the access token."""
    claims: dict[str, Any] = event["response"]["claimsAndScopeOverrideDetails"]["accessTokenGeneration"][
        "claimsToAddOrOverride"
    ]
    return claims
