"""Checks the URLs of stores. redis-py ignores what it does not know; here that is a fault. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from asyncdb_guard.settings.url import parse_endpoint

_URL = re.compile(r"(?:redis|valkey)s?://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.DOTALL)
_SCHEMES = "redis://, rediss://, valkey://"
_TABLE = re.compile(r"dynamodb://[A-Za-z0-9_.-]{3,255}")
_UNENCODED = re.compile(r"[\x00-\x20\x7f\[\]]")
_DATABASE = re.compile(r"/?|/[0-9]+")


def is_redis(text: str) -> bool:
    """Whether the URL is one of Redis's without a fault."""
    return not any(redis_url_faults(text))


def uses_tls(text: str) -> bool:
    """Whether the URL's scheme asks for TLS."""
    return text.startswith(("rediss:", "valkeys:"))


def fleet_url_faults(text: str) -> Iterator[str]:
    """The faults of a URL of the fleet's store, like those of `redis_url_faults`."""
    if not text.startswith("dynamodb:"):
        yield from redis_url_faults(text, f"{_SCHEMES}, valkeys:// or dynamodb://")
    elif not _TABLE.fullmatch(text):
        yield "must name a table after dynamodb://, 3 to 255 letters, digits, `_`, `.` or `-`, and nothing else."


def redis_url_faults(text: str, schemes: str = f"{_SCHEMES} or valkeys://") -> Iterator[str]:
    """The faults of `text`: what follows the setting's name in each sentence. They show no part of `text`."""
    match = _URL.fullmatch(text)
    if match is None:
        yield f"must start with {schemes}."
        return
    credentials, _, address = match["authority"].rpartition("@")
    host, _ = parse_endpoint(address) or (None, None)
    if host is None or _UNENCODED.search(credentials):
        yield (
            "must name a host, as in redis://host:port or redis://user:password@host:port, with a port from 1 to 65535"
            " and each part percent-encoded."
        )
    if not _DATABASE.fullmatch(match["path"]):
        yield "must end with the host, the port or a database number, as in redis://host:port/1."
    if match["rest"]:
        yield (
            "takes no parameters: remove the `?` or `#` and what follows, or percent-encode it in a password (%3F,"
            " %23)."
        )
