"""What can be wrong with the knobs, and the sentence for each. Pure; no sentence shows a value."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any, TypeAlias

from pydantic_core import ErrorDetails

from asyncdb_guard.settings.fields import ENV_PREFIX, SettingsFields
from asyncdb_guard.settings.target import ConnectTarget
from asyncdb_guard.settings.url import DatabaseUrl, nearest, parse_endpoint

Conflict: TypeAlias = tuple[frozenset[str], str]
"""The knobs concerned, and the sentence."""

VARIABLE = "$"
"""Stands before an unknown name that is a variable's, and not a keyword."""

_PARAMETERS = {
    "sslmode": "sslmode",
    "ssl_root_cert": "sslrootcert",
    "pool_max": "connection_limit",
    "connect_timeout_ms": "connect_timeout + pool_timeout (seconds)",
    "proxy_profile": "pgbouncer",
}
"""The knobs that a URL can set, and the parameters that do it."""

_WORDS = {
    "sslmode": "disable, require, verify-ca or verify-full (allow and prefer are refused: they can fall to plain text"
    " unseen and dial twice; say require or verify-full for TLS, disable for none)",
    "session_reset": "always or never",
    "proxy_profile": "true or false",
    "iam_auth": "true or false",
}


def label(knob: str) -> str:
    """A knob, for those who write Python and for those who set variables."""
    if knob == "url":
        return f"url ({ENV_PREFIX}URL, else DATABASE_URL)"
    return f"{knob} ({ENV_PREFIX}{knob.upper()})"


def unfit(error: ErrorDetails, from_url: bool) -> str:
    """The sentence for a value that pydantic refused."""
    knob = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return _unknown(knob)
    where = f"{_PARAMETERS[knob]} in the database URL" if from_url else label(knob)
    return f"{where} must be {_fit(knob)}."


def _unknown(name: str) -> str:
    bare = name.removeprefix(VARIABLE)
    knob = nearest(bare.upper().removeprefix(ENV_PREFIX), list(SettingsFields.model_fields))
    if bare != name:
        return f"{bare} is no setting; the nearest is {ENV_PREFIX}{knob.upper()}. Correct it, or take it out."
    if bare.upper() == f"{ENV_PREFIX}{knob.upper()}":
        return f"{bare} names a variable: the keyword is {knob}."
    return f"{bare} is no setting; the nearest is {knob}. Correct it, or take it out."


def _fit(knob: str) -> str:
    limits: list[Any] = SettingsFields.model_fields[knob].metadata
    if limits:
        low, high = limits
        return f"a whole number from {low.ge} to {high.le}"
    return _WORDS.get(knob, "a text, and not an empty one")


def contradiction(knob: str) -> str:
    """The sentence for a knob that was set to one value, and by the URL to another."""
    return (
        f"{_PARAMETERS[knob]} in the database URL contradicts {label(knob)}: take one of them out, or make them equal."
    )


def hidden(keyword: str) -> str:
    """The sentence for a keyword that pydantic would take for its own."""
    return f"{keyword} is no setting: take it out. No file, prefix or source other than the environment is read."


def conflicts(
    knobs: SettingsFields, url: DatabaseUrl, target: ConnectTarget, proxied: bool, from_url: Container[str]
) -> Iterator[Conflict]:
    """What is wrong between knobs that are each right. `from_url` has the names of those that only the URL sets."""
    yield from _address(knobs, url)
    yield from _credentials(knobs, url)
    yield from _tls(knobs, target)
    yield from _proxy(knobs, url, proxied, from_url)
    yield from _times(knobs)
    yield from _claims_cache(knobs)


def _conflict(sentence: str, *knobs: str) -> Conflict:
    return frozenset(knobs), sentence.format(*map(label, knobs))


def _address(knobs: SettingsFields, url: DatabaseUrl) -> Iterator[Conflict]:
    if knobs.secret_arn is not None:
        return
    if knobs.url is None:
        yield _conflict(
            f"No database URL: set {ENV_PREFIX}URL or DATABASE_URL to postgresql://user:password@host:port/database.",
            "url",
            "secret_arn",
        )
        return
    if url.host is None and knobs.proxy_host is None:
        yield _conflict("The database URL names no host: write it behind the `@`.", "url", "secret_arn", "proxy_host")
    if url.user is None:
        yield _conflict(
            "The database URL names no user: write it before the host, as in user@host.", "url", "secret_arn"
        )


def _credentials(knobs: SettingsFields, url: DatabaseUrl) -> Iterator[Conflict]:
    if knobs.secret_arn is not None and (url.user or url.password):
        yield _conflict(
            "{} gives user and password, and so does the database URL: take them out of the URL.", "secret_arn", "url"
        )
    if knobs.secret_arn is not None and knobs.iam_auth:
        yield _conflict("{} and {} exclude each other: set one.", "secret_arn", "iam_auth")
    if knobs.iam_auth and url.password:
        yield _conflict("{} signs its own password: take the password out of the database URL.", "iam_auth", "url")


def _tls(knobs: SettingsFields, target: ConnectTarget) -> Iterator[Conflict]:
    if target.sslmode == "disable" and knobs.iam_auth:
        yield _conflict("{} needs TLS: set {} to verify-full.", "iam_auth", "sslmode")
    if target.sslmode == "disable" and knobs.ssl_root_cert is not None:
        yield _conflict(
            "{} is set, and {} is disable: set verify-full, or take the former out.", "ssl_root_cert", "sslmode"
        )
    elif target.sslmode != "verify-full" and knobs.ssl_root_cert == "system":
        yield _conflict(
            "{} is system, which needs {} to be verify-full: anybody can have a certificate that the system trusts.",
            "ssl_root_cert",
            "sslmode",
        )


def _proxy(knobs: SettingsFields, url: DatabaseUrl, proxied: bool, from_url: Container[str]) -> Iterator[Conflict]:
    if knobs.proxy_host is not None and not (parse_endpoint(knobs.proxy_host) or ("",))[0]:
        yield _conflict("{} must be host, host:port or [IPv6]:port, with a port from 1 to 65535.", "proxy_host")
    if knobs.proxy_host is not None and knobs.proxy_profile is False and "proxy_profile" in from_url:
        yield _conflict(
            "pgbouncer=false in the database URL contradicts {}: take it out of the URL, or set {} to false as well"
            " if you mean it.",
            "proxy_host",
            "proxy_profile",
        )
    if proxied and url.schema not in {None, "", "public"}:
        yield _conflict(
            "schema in the database URL can only be public under the proxy profile ({} or {}), where nothing can set"
            " search_path: qualify the names in your SQL, or ALTER ROLE … SET search_path.",
            "proxy_profile",
            "proxy_host",
        )


def _times(knobs: SettingsFields) -> Iterator[Conflict]:
    if 0 < knobs.max_lifetime_ms < 100:
        yield _conflict("{} must be 0 (never), or at least 100.", "max_lifetime_ms")
    if knobs.breaker_reset_timeout_max_ms < knobs.breaker_reset_timeout_ms:
        yield _conflict(
            "{} is less than {}: raise the one or lower the other.",
            "breaker_reset_timeout_max_ms",
            "breaker_reset_timeout_ms",
        )


def _claims_cache(knobs: SettingsFields) -> Iterator[Conflict]:
    if knobs.claims_cache_url is None:
        return
    from asyncdb_guard.settings.redis_url import redis_url_faults  # not at every cold start: few have such a URL

    for fault in redis_url_faults(knobs.claims_cache_url.get_secret_value()):
        yield _conflict(f"{{}} {fault}", "claims_cache_url")
    if knobs.claims_cache_ttl_ms == 0:
        yield _conflict(
            "{} is 0, which turns the claims cache off, and {} is set: take one of them out.",
            "claims_cache_ttl_ms",
            "claims_cache_url",
        )
