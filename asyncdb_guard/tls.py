"""libpq's words for TLS, as an SSL context."""

from __future__ import annotations

import ssl

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.target import ConnectTarget


def tls_context(target: ConnectTarget) -> ssl.SSLContext | bool:
    """Return the context for asyncpg, or False for plain text. Raises ConfigurationError for a useless CA file."""
    if target.sslmode == "disable":
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = target.sslmode == "verify-full"
    if target.sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
        return context
    if target.ssl_root_cert is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cafile=target.ssl_root_cert)
    except OSError:
        usable = False
    else:
        usable = True
    if not usable:
        raise ConfigurationError("LAMBDA_DATABASE_SSL_ROOT_CERT names no readable PEM file of CA certificates.")
    return context
