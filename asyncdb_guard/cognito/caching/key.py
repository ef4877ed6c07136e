"""Cache keys: what distinguishes one answer from another. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from asyncdb_guard.cognito.event import TokenRequest


class CacheKey(NamedTuple):
    """The key of one cached answer. Both parts are SHA-256 in hexadecimal, so a key reveals neither sub nor e-mail."""

    user: str
    """The same for all entries of one user."""
    entry: str
    """Differs with everything that the callback can see or that the answer is built from."""


def user_key(sub: str) -> str:
    """The `user` part of the keys of one user."""
    return _digest("user", sub)


def cache_key(request: TokenRequest, callback_id: str) -> CacheKey:
    """The key of the answer that the callback named by `callback_id` gives to `request`."""
    user = request.user
    visible = (
        callback_id, user.version, user.user_pool_id, user.client_id, user.region, user.trigger_source, user.sub,
        user.username, user.scopes, sorted(user.attributes.items()), sorted(user.client_metadata.items()),
        request.group_configuration,
    )  # fmt: skip
    return CacheKey(user_key(user.sub), _digest("entry", json.dumps(visible, sort_keys=True)))


def stale_key(request: TokenRequest, callback_id: str) -> CacheKey:
    """The key of the copy that only `on_unavailable="stale"` reads.

    Trigger source, attributes and client metadata are not part of it, so that a token refresh finds the claims of the
    sign-in.
    """
    user = request.user
    rights = (user.version, user.user_pool_id, user.client_id, user.sub, user.scopes, request.group_configuration)
    return CacheKey(user_key(user.sub), _digest("stale", json.dumps((callback_id, *rights), sort_keys=True)))


def _digest(kind: str, text: str) -> str:
    return hashlib.sha256(f"asyncdb_guard {kind} {text}".encode("utf-8", "surrogatepass")).hexdigest()
