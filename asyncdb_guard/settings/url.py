"""Parses a database URL: libpq's grammar, and the parameters of url_parameters.py. Pure: returns values and faults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote

from pydantic import SecretStr

from asyncdb_guard.settings.url_parameters import URL_PARAMETERS, SessionAttrs, Value

_URL = re.compile(
    r"(?i:postgres(?:ql)?)://(?P<authority>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?", re.DOTALL
)
_ENDPOINT = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[\w.-]*))(?::(?P<port>[0-9]{0,5}))?")
_UNREADABLE_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SPACE_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_NO_SOCKET = "The database URL names a Unix socket, which is not supported: name a host, such as localhost."


class DatabaseUrl(NamedTuple):
    """The parts of a URL, decoded: None if a part is absent, "" if it is unreadable. Its repr shows none of them."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: SecretStr | None = None
    database: str | None = None
    application_name: str | None = None
    schema: str | None = None
    target_session_attrs: SessionAttrs | None = None
    settings: Mapping[str, Value] = MappingProxyType({})
    """The values that the parameters give to settings, by the settings' names. Their ranges are not checked yet."""

    def __repr__(self) -> str:
        return "<DatabaseUrl>"


_UNREADABLE = DatabaseUrl(host="", user="")


def nearest(name: str, known: list[str]) -> str:
    """The known name that is most like `name`, however little that is."""
    from difflib import get_close_matches  # only for faults, so not at a cold start

    return get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]


def parse_endpoint(text: str) -> tuple[str | None, int | None] | None:
    """Split `host`, `host:port` or `[IPv6]:port`; None if `text` is none of these."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or (match["port"] and not 1 <= int(match["port"]) <= 65535):
        return None
    if match["ipv6"]:
        try:
            IPv6Address(match["ipv6"])
        except ValueError:
            return None
    return match["ipv6"] or match["name"] or None, int(match["port"]) if match["port"] else None


def parse_database_url(text: str) -> tuple[DatabaseUrl, list[str]]:
    """Parse `text`; return its parts, and one sentence for each fault.

    No fault shows any part of the URL, not even the name of an unknown parameter: after a `?` that was not encoded,
    that name is a piece of the password.
    """
    text = text.strip()
    match = _URL.fullmatch(text)
    if match is None:
        return _UNREADABLE, [
            "The database URL must start with postgresql:// or postgres:// (no `+driver`, and no `key=value` form)."
        ]
    if _SPACE_OR_CONTROL.search(text):
        return _UNREADABLE, ["The database URL contains white space: percent-encode it (a space is %20)."]
    if "#" in text:
        return _UNREADABLE, ["The database URL contains a `#`: percent-encode it (%23)."]
    faults: list[str] = []
    credentials, _, address = match["authority"].rpartition("@")
    user, _, password = credentials.partition(":")
    host, port = _address(_decoded(address, "host", faults), faults)
    by_setting, others = _values(_parameters(match["query"] or "", faults), faults)
    url = DatabaseUrl(
        host=host,
        port=port,
        user=_decoded(user, "user", faults) if user else None,
        password=SecretStr(_decoded(password, "password", faults)) if password else None,
        database=_database(match["database"], faults) if match["database"] else None,
        settings=by_setting,
        **others,
    )
    if faults and "@" in text and "@" not in match["authority"]:
        # A bare `/` or `?` in the password cut the authority short: whether there is a host or a user is unknown.
        url = url._replace(host=host or "", user="")
    return url, faults


def _decoded(text: str, part: str, faults: list[str]) -> str:
    if not _UNREADABLE_ESCAPE.search(text):
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError:
            pass
    faults.append(f"The {part} in the database URL is not percent-encoded UTF-8: write each literal `%` as `%25`.")
    return ""


def _address(text: str, faults: list[str]) -> tuple[str | None, int | None]:
    if "," in text:
        faults.append("The database URL names several hosts: name one, such as the cluster endpoint.")
    elif text.startswith("/"):
        faults.append(_NO_SOCKET)
    elif endpoint := parse_endpoint(text):
        return endpoint
    else:
        faults.append(
            "The host and port in the database URL must be host, host:port or [IPv6]:port, with a port from 1 to 65535."
            " Percent-encode `/`, `?`, `@` and `:` in the user and in the password."
        )
    return "", None


def _database(text: str, faults: list[str]) -> str:
    # Nearly always the rest of a password that was not encoded.
    if "/" in text or "@" in text:
        faults.append(
            "The database URL contains a bare `/` or `@` after the host: percent-encode it (%2F, %40) in the user, the"
            " password and the name of the database."
        )
        return ""
    return _decoded(text, "database", faults)


def _parameters(query: str, faults: list[str]) -> dict[str, str]:
    known = [parameter.name for parameter in URL_PARAMETERS]
    parameters: dict[str, str] = {}
    for position, pair in enumerate(query.split("&"), start=1):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if name == "host":
            faults.append(_NO_SOCKET)
        elif name not in known:
            faults.append(
                f"Parameter {position} of the database URL is unknown; the nearest known one is {nearest(name, known)}."
                f" Remove it, or use one of {', '.join(known)}."
            )
        elif not value:
            faults.append(f"{name} in the database URL has no value: give it one, or remove it.")
        elif "+" in value:
            faults.append(
                f"{name} in the database URL contains a bare `+`, which some clients read as a space: write %20 for a"
                " space, or %2B for a plus."
            )
        elif parameters.setdefault(name, decoded := _decoded(value, name, faults)) != decoded:
            faults.append(f"{name} appears twice in the database URL, with different values: keep one.")
    return parameters


def _values(parameters: Mapping[str, str], faults: list[str]) -> tuple[dict[str, Value], dict[str, Any]]:
    """The parsed values, by what they feed: settings, and other fields of `DatabaseUrl`."""
    by_setting: dict[str, Any] = {}
    others: dict[str, Any] = {}
    refused: set[str] = set()
    for parameter in URL_PARAMETERS:
        if not (text := parameters.get(parameter.name)):
            continue
        value = parameter.parse(text)
        values = by_setting if parameter.feeds_setting else others
        if value is None:
            faults.append(f"{parameter.name} in the database URL must be {parameter.rule}.")
            refused.add(parameter.feeds)
        elif parameter.feeds in values:
            values[parameter.feeds] += value
        else:
            values[parameter.feeds] = value
    # Part of a sum is not what the URL says.
    return {setting: value for setting, value in by_setting.items() if setting not in refused}, others
