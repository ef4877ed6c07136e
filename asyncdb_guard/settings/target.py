"""Where to connect and how: what the driver is given, decided purely from the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from pydantic import SecretStr

from asyncdb_guard.settings.fields import SettingsFields, SslMode
from asyncdb_guard.settings.url import DatabaseUrl, parse_endpoint

DEFAULT_PORT = 5432


@dataclass(frozen=True, slots=True)
class ConnectTarget:
    """Where to connect and how. Its repr shows no host, no name and no secret.

    Under SECRET_ARN, None in `host`, `port`, `user`, `password` or `database` means that the secret says. Else only
    `password` may be None: there is none.
    """

    host: str | None = field(repr=False)
    """A name or an address (IPv6 without brackets), PROXY_HOST already applied."""
    port: int | None = field(repr=False)
    user: str | None = field(repr=False)
    password: SecretStr | None = field(repr=False)
    database: str | None = field(repr=False)
    sslmode: SslMode
    """What is done in the end: `require` with a root certificate is `verify-ca` already, as in libpq."""
    ssl_root_cert: str | None
    """A PEM file, or None for the system's trust store."""
    application_name: str | None = field(repr=False)
    schema: str | None = field(repr=False)
    """One bare name, to be quoted and sent as `search_path` at startup; always None under the proxy profile."""


def is_loopback(host: str | None) -> bool:
    """Whether packets to `host` never leave the machine. A host that is not known yet may be anywhere."""
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def connect_target(knobs: SettingsFields, url: DatabaseUrl, proxied: bool) -> ConnectTarget:
    """Where the knobs and the URL lead. What they leave open is None; nothing is judged here."""
    host, port = url.host, url.port
    if knobs.proxy_host is not None:
        host, own_port = parse_endpoint(knobs.proxy_host) or (None, None)
        port = own_port or port
    database = url.database
    if knobs.secret_arn is None:
        port = port or DEFAULT_PORT
        database = database or url.user
    return ConnectTarget(
        host=host,
        port=port,
        user=url.user,
        password=url.password,
        database=database,
        sslmode=_sslmode(knobs, host),
        ssl_root_cert=None if knobs.ssl_root_cert == "system" else knobs.ssl_root_cert,
        application_name=url.application_name,
        schema=None if proxied else url.schema,
    )


def _sslmode(knobs: SettingsFields, host: str | None) -> SslMode:
    if knobs.sslmode is None:
        wanted = knobs.iam_auth or knobs.ssl_root_cert is not None
        return "verify-full" if wanted or not is_loopback(host) else "disable"
    if knobs.sslmode == "require" and knobs.ssl_root_cert is not None:
        return "verify-ca"
    return knobs.sslmode
