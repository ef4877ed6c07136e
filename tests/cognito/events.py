"""Cognito's events, with parts of their requests replaced."""

from __future__ import annotations

from typing import Any

from asyncdb_guard.testing import access_claims, cognito_events, id_claims, machine_event
from asyncdb_guard.testing.cognito_events import CLIENT_ID
from asyncdb_guard.testing.cognito_events import USER_POOL_ID as POOL_ID

__all__ = [
    "CLIENT_ID",
    "POOL_ID",
    "access_claims",
    "confirmation_event",
    "id_claims",
    "machine_event",
    "token_event",
    "user_attributes",
]


def user_attributes(sub: str | None = None, **attributes: Any) -> dict[str, Any]:
    attributes_of_event: dict[str, Any] = token_event(sub=sub)["request"]["userAttributes"]
    return attributes_of_event | attributes


def token_event(
    version: str = "2", *, sub: str | None = None, source: str = "TokenGeneration_HostedAuth", **request: Any
) -> dict[str, Any]:
    """A pre token generation event; `request` replaces parts of its request."""
    event = cognito_events.token_event(version, sub=sub, source=source, roles=["arn:aws:iam::1:role/e"])
    event["request"].update(request)
    return event


def confirmation_event(sub: str | None = None, source: str = "PostConfirmation_ConfirmSignUp") -> dict[str, Any]:
    """A post confirmation event."""
    return cognito_events.confirmation_event(sub=sub, source=source)
