"""Every parameter of the database URL. A new one is one new row.

The parser (url.py), the sentences of the faults (problems.py), the table in docs/settings.md and the tests read these
rows.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

from asyncdb_guard.settings.fields import SettingsFields, number_range, rule
from asyncdb_guard.settings.server_settings import parse_server_settings, write_server_settings

Value: TypeAlias = str | int | bool

SessionAttrs: TypeAlias = Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]
"""libpq's words for the kind of node that a session may be on."""

_SESSION_ATTRS: tuple[str, ...] = get_args(SessionAttrs)

_WHOLE_NUMBER = r"[0-9]{1,9}"


class UrlParameter(NamedTuple):
    """One parameter of the database URL."""

    name: str
    feeds: str
    """The setting that takes the value, or a field of `DatabaseUrl` if there is no such setting. Where two feed one
    setting, their values add up."""
    parse: Callable[[str], Value | None]
    """Turns the decoded, non-empty text into the value, in the setting's unit; None if the text breaks the rule."""
    rule: str
    """What the value must be, as the end of a sentence."""
    doc: str
    example: str
    """A value that is valid on its own and together with the other examples."""

    @property
    def feeds_setting(self) -> bool:
        """Whether it sets what a keyword or a variable can set as well, and contradict."""
        return self.feeds in SettingsFields.model_fields


def _parse_whole_number(text: str) -> int | None:
    return int(text) if re.fullmatch(_WHOLE_NUMBER, text) else None


def _parse_seconds(text: str) -> int | None:
    seconds = _parse_whole_number(text)
    return 1000 * seconds if seconds else None  # milliseconds; 0 breaks the rule


def _parse_seconds_or_never(text: str) -> int | None:
    seconds = _parse_whole_number(text)
    return None if seconds is None else 1000 * seconds  # milliseconds


def _parse_schemas(text: str) -> str | None:
    return text if all(name.strip() for name in text.split(",")) else None


def _parse_sslaccept(text: str) -> bool | None:
    return {"strict": True, "accept_invalid_certs": False}.get(text)


def _parse_boolean(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text)


def _parse_application_name(text: str) -> str | None:
    # PostgreSQL replaces other characters, and cuts off what is longer.
    return text if text.isascii() and text.isprintable() and len(text) <= 63 else None


def _parse_options(text: str) -> str | None:
    settings = parse_server_settings(text)
    return write_server_settings(settings) if settings else None


def _parse_session_attrs(text: str) -> str | None:
    return text if text in _SESSION_ATTRS else None


def _seconds_rule(setting: str, together: str = "") -> str:
    limits = number_range(setting)
    assert limits is not None
    return (
        f"a whole number of seconds from 1 to {limits[1] // 1000}{together} (0, which means no limit in Prisma, is"
        " refused)"
    )


_SECONDS_RULE = _seconds_rule("connect_timeout_ms", ", connect_timeout and pool_timeout together")

URL_PARAMETERS = (
    UrlParameter(
        "sslmode",
        feeds="sslmode",
        parse=str,
        rule=rule("sslmode"),
        doc="TLS mode, as in libpq.",
        example="require",
    ),
    UrlParameter(
        "sslrootcert",
        feeds="ssl_root_cert",
        parse=str,
        rule=rule("ssl_root_cert"),
        doc="PEM file, or `system`.",
        example="/opt/rds/global-bundle.pem",
    ),
    UrlParameter(
        "sslcert",
        feeds="ssl_cert",
        parse=str,
        rule=rule("ssl_cert"),
        doc="PEM file of the client's certificate.",
        example="/opt/app/client.pem",
    ),
    UrlParameter(
        "sslkey",
        feeds="ssl_key",
        parse=str,
        rule=rule("ssl_key"),
        doc="PEM file of its private key.",
        example="/opt/app/client.key",
    ),
    UrlParameter(
        "sslaccept",
        feeds="verifies",
        parse=_parse_sslaccept,
        rule="strict or accept_invalid_certs",
        doc="Prisma's: `strict` turns `sslmode=require` into `verify-full`.",
        example="strict",
    ),
    UrlParameter(
        "application_name",
        feeds="application_name",
        parse=_parse_application_name,
        rule="at most 63 printable ASCII characters",
        doc="The name in pg_stat_activity.",
        example="signup",
    ),
    UrlParameter(
        "options",
        feeds="server_settings",
        parse=_parse_options,
        rule="settings as in -c%20name=value, or --name=value, each name once",
        doc="Settings of each session, as in libpq: `--timezone=UTC` or `-c%20timezone=UTC`.",
        example="--application_name=signup",
    ),
    UrlParameter(
        "connect_timeout",
        feeds="connect_timeout_ms",
        parse=_parse_seconds,
        rule=_SECONDS_RULE,
        doc="Added to `pool_timeout`, if both are set.",
        example="1",
    ),
    UrlParameter(
        "connection_limit",
        feeds="pool_max",
        parse=_parse_whole_number,
        rule=rule("pool_max"),
        doc="The most sessions of one pool.",
        example="1",
    ),
    UrlParameter(
        "pool_timeout",
        feeds="connect_timeout_ms",
        parse=_parse_seconds,
        rule=_SECONDS_RULE,
        doc="Added to `connect_timeout`, if both are set.",
        example="2",
    ),
    UrlParameter(
        "socket_timeout",
        feeds="command_timeout_ms",
        parse=_parse_seconds,
        rule=_seconds_rule("command_timeout_ms"),
        doc="The bound on one statement.",
        example="5",
    ),
    UrlParameter(
        "max_idle_connection_lifetime",
        feeds="idle_timeout_ms",
        parse=_parse_seconds,
        rule=_seconds_rule("idle_timeout_ms"),
        doc="How long a session may be idle.",
        example="30",
    ),
    UrlParameter(
        "max_connection_lifetime",
        feeds="max_lifetime_ms",
        parse=_parse_seconds_or_never,
        rule="a whole number of seconds from 0, which means never, to 86400",
        doc="How old a session may become.",
        example="900",
    ),
    UrlParameter(
        "pgbouncer",
        feeds="proxy_profile",
        parse=_parse_boolean,
        rule=rule("proxy_profile"),
        doc="Turns the proxy profile on or off.",
        example="true",
    ),
    UrlParameter(
        "schema",
        feeds="schema",
        parse=_parse_schemas,
        rule="the names of schemas, separated by commas; only public under the proxy profile",
        doc="The `search_path`, as in `schema=tenant,public`.",
        example="public",
    ),
    UrlParameter(
        "target_session_attrs",
        feeds="target_session_attrs",
        parse=_parse_session_attrs,
        rule=f"{', '.join(_SESSION_ATTRS[:-1])} or {_SESSION_ATTRS[-1]}, and under the proxy profile any",
        doc="The kind of node that a session may be on, as in libpq.",
        example="any",
    ),
)
"""Every parameter that sets something besides the address. Any other is refused."""

ADDRESS_PARAMETERS = ("host", "port", "user", "password", "dbname")
"""libpq's names for the parts before the `?`. They are read where the part itself is missing."""
