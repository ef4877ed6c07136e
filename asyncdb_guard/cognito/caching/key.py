"""Cache keys: what distinguishes one answer from another. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from asyncdb_guard.cognito.event import CognitoUser, Subject, TokenRequest


class CacheKey(NamedTuple):
    """The key of one cached answer. Both parts are SHA-256 in hexadecimal, so a key reveals neither sub nor e-mail."""

    user: str
    """The same for all entries of one user, or of one machine."""
    entry: str
    """Differs with everything that the callback can see or that the answer is built from."""


def user_key(sub: str) -> str:
    """The `user` part of the keys of one user."""
    return _digest("user", sub)


def client_key(client_id: str) -> str:
    """The `user` part of the keys of one machine."""
    return _digest("client", client_id)


def cache_key(request: TokenRequest, callback_id: str) -> CacheKey:
    """The key of the answer that the callback named by `callback_id` gives to `request`."""
    subject = request.subject
    visible: tuple[object, ...] = (
        callback_id, subject.version, subject.user_pool_id, subject.client_id, subject.region, subject.trigger_source,
        subject.scopes, sorted(subject.client_metadata.items()), request.group_configuration,
    )  # fmt: skip
    if isinstance(subject, CognitoUser):
        visible += (subject.sub, subject.username, sorted(subject.attributes.items()))
    return CacheKey(_owner(subject), _digest("entry", json.dumps(visible, sort_keys=True)))


def stale_key(request: TokenRequest, callback_id: str) -> CacheKey:
    """The key of the copy that only `on_unavailable="stale"` reads.

    Trigger source, attributes and client metadata are not part of it, so that a token refresh finds the claims of the
    sign-in.
    """
    subject = request.subject
    rights: tuple[object, ...] = (
        callback_id, subject.version, subject.user_pool_id, subject.client_id, subject.scopes,
        request.group_configuration,
    )  # fmt: skip
    owner = _owner(subject)
    return CacheKey(owner, _digest("stale", json.dumps((*rights, owner), sort_keys=True)))


def _owner(subject: Subject) -> str:
    return user_key(subject.sub) if isinstance(subject, CognitoUser) else client_key(subject.client_id)


def _digest(kind: str, text: str) -> str:
    return hashlib.sha256(f"asyncdb_guard {kind} {text}".encode("utf-8", "surrogatepass")).hexdigest()
