"""Where to connect and how: what the driver is given. A pure function of the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from pydantic import SecretStr

from asyncdb_guard.settings.fields import SettingsFields, SslMode
from asyncdb_guard.settings.pooler_profile import PoolerProfile
from asyncdb_guard.settings.server_settings import parse_server_settings
from asyncdb_guard.settings.url import DatabaseUrl, parse_endpoint
from asyncdb_guard.settings.url_parameters import SessionAttrs

DEFAULT_PORT = 5432


@dataclass(frozen=True, slots=True)
class ConnectTarget:
    """Where to connect and how. Its repr shows no host, no name and no secret.

    With SECRET_ARN, None in `host`, `port`, `user`, `password` or `database` means that the secret supplies it.
    Without, only `password` may be None, and means that there is no password.
    """

    host: str | None = field(repr=False)
    """A name, an address (IPv6 without brackets) or a Unix socket's directory. This is PROXY_HOST's, if that is set."""
    port: int | None = field(repr=False)
    user: str | None = field(repr=False)
    password: SecretStr | None = field(repr=False)
    database: str | None = field(repr=False)
    sslmode: SslMode
    """The mode in effect: `require` with a root certificate is `verify-ca` here, as in libpq."""
    ssl_root_cert: str | None
    """A PEM file, or None for the system's trust store."""
    application_name: str | None = field(repr=False)
    schema: str | None = field(repr=False)
    """Unquoted names, separated by commas, to be sent as `search_path` at startup. Always None under a profile that
    does not set it."""
    target_session_attrs: SessionAttrs = "any"
    """The kind of node that a session may be on."""
    ssl_cert: str | None = None
    """A PEM file of the client's certificate; None if it has none."""
    ssl_key: str | None = None
    server_settings: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Names and values of SERVER_SETTINGS, to be sent at startup. Always empty under a profile that sends none."""


def is_loopback(host: str | None) -> bool:
    """Whether packets to `host` never leave the machine. False for None, a host that is not known yet."""
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_socket(host: str | None) -> bool:
    """Whether `host` is the directory of a Unix socket."""
    return host is not None and host.startswith("/")


def connect_target(
    settings: SettingsFields, url: DatabaseUrl, profile: PoolerProfile, default_name: str | None = None
) -> ConnectTarget:
    """Combine the settings and the URL. What they leave open is None; nothing is checked here.

    `default_name`: the application_name where nothing else names the sessions.
    """
    own = parse_server_settings(settings.server_settings or "") or {}
    application_name = url.application_name or own.pop("application_name", default_name)
    host, port = url.host, url.port
    if settings.proxy_host is not None:
        host, own_port = parse_endpoint(settings.proxy_host) or (None, None)
        port = own_port or port
    database = url.database
    if settings.secret_arn is None:
        port = port or DEFAULT_PORT
        database = database or url.user
    return ConnectTarget(
        host=host,
        port=port,
        user=url.user,
        password=url.password,
        database=database,
        sslmode=_sslmode(settings, url, host),
        ssl_root_cert=None if settings.ssl_root_cert == "system" else settings.ssl_root_cert,
        application_name=application_name,
        schema=url.schema if profile.sets_search_path else None,
        target_session_attrs=url.target_session_attrs or "any",
        ssl_cert=settings.ssl_cert,
        ssl_key=settings.ssl_key,
        server_settings=tuple(own.items()) if profile.sends_startup_timeouts else (),
    )


def _sslmode(settings: SettingsFields, url: DatabaseUrl, host: str | None) -> SslMode:
    if settings.sslmode is None:
        needs_tls = settings.iam_auth or settings.ssl_root_cert is not None or settings.ssl_cert is not None
        is_local = is_socket(host) or (is_loopback(host) and not needs_tls)
        return "disable" if is_local else "verify-full"
    if settings.sslmode == "require" and url.verifies is True:
        return "verify-full"
    if settings.sslmode == "require" and settings.ssl_root_cert is not None:
        return "verify-ca"
    return settings.sslmode
