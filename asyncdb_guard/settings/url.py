"""Parses a database URL: libpq's grammar, and the parameters of url_parameters.py. Pure: returns values and faults."""

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote

from pydantic import SecretStr

from asyncdb_guard.settings.url_parameters import ADDRESS_PARAMETERS, URL_PARAMETERS, SessionAttrs, Value

# What only a fault or a rare URL needs is compiled when it is first used: compiling it all delays a cold start.
_PASTED = re.compile(r"""(?:psql\s+)?(?P<quote>["']?)(?P<url>.*)(?P=quote)""", re.DOTALL)
"""The quotes of an env file or of a shell around the URL, and the psql command in front of it."""
_URL = re.compile(
    r"(?i:(?:jdbc:)?(?:postgres(?:ql)?|cockroachdb)(?:\+\w+)?)://(?P<authority>[^/?]*)(?:/(?P<database>[^?]*))?"
    r"(?:\?(?P<query>.*))?",
    re.DOTALL,
)
"""SQLAlchemy names the driver after a `+`. Here that is always asyncpg."""
_PRISMAS_OWN = r"(?s)(?i:prisma(?:\+postgres(?:ql)?)?)://.*"
_KEY_VALUE = r"(?s)\s*[A-Za-z][\w ]*=.*"
_ENDPOINT = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[\w.-]*))(?::(?P<port>[0-9]{0,5}))?")
_SOCKET = r"(?P<path>(?i:%2f).*?)(?::(?P<port>[0-9]{0,5}))?"
_UNREADABLE_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SPACE_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_PARAMETER_NAME = r"[A-Za-z_][\w.-]{0,40}"
_PLACEHOLDER = r"(?i)[\[<{][A-Za-z _-]*password[A-Za-z _-]*[\]>}]"
"""What Supabase, CockroachDB and Azure write where the password belongs."""


class DatabaseUrl(NamedTuple):
    """The parts of a URL, decoded: None if a part is absent, "" if it is unreadable. Its repr shows none of them."""

    host: str | None = None
    """A name, an address, or the directory of a Unix socket."""
    port: int | None = None
    user: str | None = None
    password: SecretStr | None = None
    database: str | None = None
    application_name: str | None = None
    schema: str | None = None
    """The names of schemas, separated by commas."""
    target_session_attrs: SessionAttrs | None = None
    verifies: bool | None = None
    """Prisma's sslaccept: whether the server's certificate is verified."""
    settings: Mapping[str, Value] = MappingProxyType({})
    """The values that the parameters give to settings, by the settings' names. Their ranges are not checked yet."""

    def __repr__(self) -> str:
        return "<DatabaseUrl>"


_UNREADABLE = DatabaseUrl(host="", user="")


def nearest(name: str, known: list[str]) -> str | None:
    """The known name that `name` is probably meant to be; None if there is none like it."""
    from difflib import get_close_matches  # only for faults, so not at a cold start

    return next(iter(get_close_matches(name.lower(), known, cutoff=0.75)), None)


def parse_endpoint(text: str) -> tuple[str | None, int | None] | None:
    """Split `host`, `host:port` or `[IPv6]:port`; None if `text` is none of these."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or not _is_port(match["port"]):
        return None
    if match["ipv6"]:
        try:
            IPv6Address(match["ipv6"])
        except ValueError:
            return None
    return match["ipv6"] or match["name"] or None, int(match["port"]) if match["port"] else None


def _is_port(digits: str | None) -> bool:
    return not digits or 1 <= int(digits) <= 65535


def parse_database_url(text: str) -> tuple[DatabaseUrl, list[str]]:
    """Parse `text`; return its parts, and one sentence for each fault.

    No fault shows any part of the URL but the name of a parameter, and that only where it cannot be a piece of a
    password that was not encoded.
    """
    pasted = _PASTED.fullmatch(text.strip())
    assert pasted is not None
    text = pasted["url"].strip()
    match = _URL.fullmatch(text)
    if match is None:
        return _UNREADABLE, [_scheme_fault(text)]
    if _SPACE_OR_CONTROL.search(text):
        return _UNREADABLE, ["The database URL contains white space: percent-encode it (a space is %20)."]
    if "#" in text:
        return _UNREADABLE, ["The database URL contains a `#`: percent-encode it (%23)."]
    faults: list[str] = []
    credentials, at_sign, address = match["authority"].rpartition("@")
    user, _, password = credentials.partition(":")
    host, port = _address(address, faults)
    query = match["query"] or ""
    # An `@` ends the password, unless one comes later, and without a `:` before it there is none.
    is_plain = "@" not in f"{match['database']}{query}" and (bool(at_sign) or ":" not in address)
    address_parameters, parameters = _parameters(query, is_plain, faults)
    by_setting, others = _values(parameters, faults)
    parts: dict[str, Any] = {
        "host": host,
        "port": port,
        "user": _decoded(user, "user", faults) if user else None,
        "password": SecretStr(_decoded(password, "password", faults)) if password else None,
        "database": _database(match["database"], faults) if match["database"] else None,
    }
    _complete(parts, address_parameters, faults)
    url = DatabaseUrl(**parts, settings=by_setting, **others)
    if url.password is not None and re.fullmatch(_PLACEHOLDER, url.password.get_secret_value()):
        faults.append("The database URL contains a placeholder for the password: replace it, brackets included.")
    if faults and "@" in text and "@" not in match["authority"]:
        # A bare `/` or `?` in the password cut the authority short: whether there is a host or a user is unknown.
        url = url._replace(host=host or "", user="")
    return url, faults


def _scheme_fault(text: str) -> str:
    if re.fullmatch(_PRISMAS_OWN, text):
        return (
            "The database URL leads to Prisma Accelerate, which only Prisma's client can use: use the database's own."
        )
    if "://" not in text and re.fullmatch(_KEY_VALUE, text):
        return (
            "The database URL is in the form `key=value`: write it as postgresql://user:password@host:port/database,"
            " each part percent-encoded."
        )
    return "The database URL must start with postgresql:// or postgres://."


def _decoded(text: str, part: str, faults: list[str]) -> str:
    if not _UNREADABLE_ESCAPE.search(text):
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError:
            pass
    faults.append(f"The {part} in the database URL is not percent-encoded UTF-8: write each literal `%` as `%25`.")
    return ""


def _address(raw: str, faults: list[str]) -> tuple[str | None, int | None]:
    if raw.startswith("%2") and (socket := re.fullmatch(_SOCKET, raw)) and _is_port(socket["port"]):
        return _directory(_decoded(socket["path"], "host", faults), faults), _number(socket["port"])
    text = _decoded(raw, "host", faults)
    if "," in text:
        faults.append("The database URL names several hosts: name one, such as the cluster endpoint.")
    elif endpoint := parse_endpoint(text):
        return endpoint
    else:
        faults.append(
            "The host and port in the database URL must be host, host:port or [IPv6]:port, with a port from 1 to 65535."
            " Percent-encode `/`, `?`, `@` and `:` in the user and in the password."
        )
    return "", None


def _number(digits: str | None) -> int | None:
    return int(digits) if digits else None


def _directory(path: str, faults: list[str]) -> str:
    if "," in path:  # asyncpg splits the host there
        faults.append("The directory of the Unix socket in the database URL contains a comma: name one without.")
        return ""
    return path


def _database(text: str, faults: list[str]) -> str:
    # Nearly always the rest of a password that was not encoded.
    if "/" in text or "@" in text:
        faults.append(
            "The database URL contains a bare `/` or `@` after the host: percent-encode it (%2F, %40) in the user, the"
            " password and the name of the database."
        )
        return ""
    return _decoded(text, "database", faults)


def _parameters(query: str, is_plain: bool, faults: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The decoded parameters: those that name a part of the address, and the others.

    `is_plain`: whether no name can be a piece of a password.
    """
    known = [parameter.name for parameter in URL_PARAMETERS]
    address: dict[str, str] = {}
    others: dict[str, str] = {}
    for position, pair in enumerate(query.split("&"), start=1):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        parameters = address if name in ADDRESS_PARAMETERS else others
        if name == "options" and (fault := _foreign_options(value)) is not None:
            faults.append(fault)
        elif parameters is others and name not in known:
            shown = is_plain and "password" not in address and re.fullmatch(_PARAMETER_NAME, name)
            fault = _foreign(name, value, f"{name} in" if shown else f"Parameter {position} of", known)
            faults += [fault] if fault else []
        elif not value:
            faults.append(f"{name} in the database URL has no value: give it one, or remove it.")
        elif "+" in value:
            faults.append(
                f"{name} in the database URL contains a bare `+`, which some clients read as a space: write %20 for a"
                " space, or %2B for a plus."
            )
        elif parameters.setdefault(name, decoded := _decoded(value, name, faults)) != decoded:
            faults.append(f"{name} appears twice in the database URL, with different values: keep one.")
    return address, others


def _foreign_options(value: str) -> str | None:
    """The fault of an `options` that speaks to a platform's proxy and not to the server."""
    from asyncdb_guard.settings.foreign_names import OPTIONS_REMEDIES  # only where it is needed, as below

    starts = (start for start in OPTIONS_REMEDIES if unquote(value).startswith(start))
    return next((f"options={start}… in the database URL {OPTIONS_REMEDIES[start]}." for start in starts), None)


def _foreign(name: str, value: str, place: str, known: list[str]) -> str | None:
    """The fault of a parameter that sets nothing here; None if it asks for what happens in any case."""
    from asyncdb_guard.settings import foreign_names  # only where it is needed, for a quick cold start

    lower = name.lower()
    if unquote(value).lower() in foreign_names.ALREADY_SO.get(lower, ()):
        return None
    if lower in foreign_names.URL_REMEDIES:
        return f"{name} in the database URL is not supported: {foreign_names.URL_REMEDIES[lower]}."
    if (meant := nearest(name, [*known, *ADDRESS_PARAMETERS])) is not None:
        return f"{place} the database URL is unknown; the nearest known one is {meant}. Correct it, or remove it."
    return f"{place} the database URL is unknown: remove it. The known ones are {', '.join(known)}."


def _complete(parts: dict[str, Any], parameters: Mapping[str, str], faults: list[str]) -> None:
    """Add what parameters say of the address. One that contradicts the part before the `?` is a fault."""
    for name, text in parameters.items():
        part = "database" if name == "dbname" else name
        value: Any = text
        if name == "password":
            value = SecretStr(text)
        elif name == "port":
            value = int(text) if re.fullmatch("[0-9]{1,5}", text) and _is_port(text) else None
            if value is None:
                faults.append("port in the database URL must be a port from 1 to 65535.")
        elif name == "host" and text.startswith("/"):
            value = _directory(text, faults)
            # As libpq does: Prisma's URLs name a socket beside a host that only fills the place.
            parts["host"] = None if parts["host"] == "localhost" else parts["host"]
        elif name == "host":
            value, port = parse_endpoint(text) or parse_endpoint(f"[{text}]") or (None, None)
            if value is None or port is not None:
                value = ""
                faults.append("host in the database URL must be one host, or the directory of a Unix socket.")
        if parts[part] is None:
            parts[part] = value
        elif value and parts[part] not in {value, ""}:
            faults.append(f"{name} in the database URL contradicts the part before the `?`: keep one of them.")


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
