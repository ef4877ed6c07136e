"""Reading a database URL, by libpq's grammar and with Prisma's parameters. Pure: a text in, facts and faults out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from pydantic import SecretStr

PARAMETERS = (
    "sslmode",
    "sslrootcert",
    "application_name",
    "connect_timeout",
    "connection_limit",
    "pool_timeout",
    "pgbouncer",
    "schema",
)
"""Every parameter that is honoured. Any other is refused."""

_TIMEOUTS = ("connect_timeout", "pool_timeout")

_URL = re.compile(
    r"(?i:postgres(?:ql)?)://(?P<authority>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?", re.DOTALL
)
_ENDPOINT = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[\w.-]*))(?::(?P<port>[0-9]{0,5}))?")
_UNREADABLE_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SPACE_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
_NO_SOCKET = "The database URL names a Unix socket, which is not supported: name a host, such as localhost."


class DatabaseUrl(NamedTuple):
    """What a URL says, decoded: None where it says nothing, "" where it can't be read. Its repr shows none of it."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: SecretStr | None = None
    database: str | None = None
    application_name: str | None = None
    schema: str | None = None
    knobs: Mapping[str, str | int | bool] = MappingProxyType({})
    """What the parameters say of the knobs, by their names, still to be checked against each knob's range."""

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
    """Read `text`; what can't be read is one sentence in the second part of the answer.

    `connect_timeout` (the time to dial) and `pool_timeout` (the time to wait for the pool) add up to one bound,
    `connect_timeout_ms`; where only one is given, it alone is the bound.

    No fault shows any part of the URL, not even an unknown parameter's name: behind a `?` that was not encoded
    that is a piece of the password.
    """
    text = text.strip()
    match = _URL.fullmatch(text)
    if match is None:
        return _UNREADABLE, [
            "The database URL must start with postgresql:// or postgres:// (no `+driver`, no `key=value` form)."
        ]
    if _SPACE_OR_CONTROL.search(text):
        return _UNREADABLE, ["The database URL has white space in it: percent-encode it (a space is %20)."]
    if "#" in text:
        return _UNREADABLE, ["The database URL has a `#` in it: percent-encode it (%23)."]
    faults: list[str] = []
    credentials, _, address = match["authority"].rpartition("@")
    user, _, password = credentials.partition(":")
    host, port = _address(_decoded(address, "host", faults), faults)
    parameters = _parameters(match["query"] or "", faults)
    url = DatabaseUrl(
        host=host,
        port=port,
        user=_decoded(user, "user", faults) if user else None,
        password=SecretStr(_decoded(password, "password", faults)) if password else None,
        database=_database(match["database"], faults) if match["database"] else None,
        application_name=_application_name(parameters.get("application_name"), faults),
        schema=parameters.get("schema"),
        knobs=_knobs(parameters, faults),
    )
    if faults and "@" in text and "@" not in match["authority"]:
        # A password with a bare `/` or `?` cut the authority short: nobody can tell which names are there.
        url = url._replace(host=host or "", user="")
    return url, faults


def _decoded(text: str, part: str, faults: list[str]) -> str:
    if not _UNREADABLE_ESCAPE.search(text):
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError:
            pass
    faults.append(
        f"The {part} in the database URL is not percent-encoded UTF-8: write every `%` that is meant as `%25`."
    )
    return ""


def _address(text: str, faults: list[str]) -> tuple[str | None, int | None]:
    if "," in text:
        faults.append("The database URL names several hosts: name one, such as the cluster's own endpoint.")
    elif text.startswith("/"):
        faults.append(_NO_SOCKET)
    elif endpoint := parse_endpoint(text):
        return endpoint
    else:
        faults.append(
            "The host and port in the database URL must be host, host:port or [IPv6]:port, with a port from 1 to 65535."
            " Percent-encode `/`, `?`, `@` and `:` where they belong to the user or the password."
        )
    return "", None


def _database(text: str, faults: list[str]) -> str:
    # A bare one of these is nearly always the rest of a password that was not encoded.
    if "/" in text or "@" in text:
        faults.append(
            "The database URL has a bare `/` or `@` behind the host: percent-encode those of the password,"
            " the user or the database's name (%2F, %40)."
        )
        return ""
    return _decoded(text, "database", faults)


def _parameters(query: str, faults: list[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for position, pair in enumerate(query.split("&"), start=1):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if name == "host":
            faults.append(_NO_SOCKET)
        elif name not in PARAMETERS:
            faults.append(
                f"Parameter {position} of the database URL is unknown here; the nearest known one is"
                f" {nearest(name, list(PARAMETERS))}. Take it out, or use one of {', '.join(PARAMETERS)}."
            )
        elif not value:
            faults.append(f"{name} in the database URL has no value: give it one, or take it out.")
        elif "+" in value:
            faults.append(
                f"{name} in the database URL has a bare `+`, a space to some clients and a plus to others:"
                " write %20 or %2B."
            )
        elif parameters.setdefault(name, decoded := _decoded(value, name, faults)) != decoded:
            faults.append(f"{name} stands twice in the database URL, with different values: keep one.")
    return parameters


def _application_name(name: str | None, faults: list[str]) -> str | None:
    if name and not (name.isascii() and name.isprintable() and len(name) <= 63):
        faults.append("application_name in the database URL must be at most 63 printable ASCII characters.")
        return None
    return name


def _knobs(parameters: Mapping[str, str], faults: list[str]) -> dict[str, str | int | bool]:
    knobs: dict[str, str | int | bool] = {}
    for knob, name in (("sslmode", "sslmode"), ("ssl_root_cert", "sslrootcert")):
        if word := parameters.get(name):
            knobs[knob] = word
    if word := parameters.get("pgbouncer"):
        if word in {"true", "false"}:
            knobs["proxy_profile"] = word == "true"
        else:
            faults.append("pgbouncer in the database URL must be true or false.")
    if word := parameters.get("connection_limit"):
        if _WHOLE_NUMBER.fullmatch(word):
            knobs["pool_max"] = int(word)
        else:
            faults.append("connection_limit in the database URL must be a whole number from 1 up.")
    timeouts = [_seconds(name, parameters[name], faults) for name in _TIMEOUTS if parameters.get(name)]
    if timeouts and all(timeouts):
        knobs["connect_timeout_ms"] = 1000 * sum(timeouts)
    return knobs


def _seconds(name: str, word: str, faults: list[str]) -> int:
    if _WHOLE_NUMBER.fullmatch(word) and int(word):
        return int(word)
    faults.append(
        f"{name} in the database URL must be a whole number of seconds from 1 up;"
        " 0, no limit elsewhere, is refused: every wait here is bounded."
    )
    return 0
