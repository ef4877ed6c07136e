"""Turns libpq's sslmode into an SSL context."""

from __future__ import annotations

import ssl

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import ConnectTarget


class _NamedContext(ssl.SSLContext):
    """Verifies the server's certificate for the host name in the settings, whichever of its addresses was dialled."""

    host: str | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.host or server_hostname, session)


class TlsContexts:
    """Creates each context once: reading the system's trust store alone takes 10 ms or more."""

    def __init__(self) -> None:
        self._made: dict[tuple[str | None, ...], ssl.SSLContext] = {}

    def context(self, target: ConnectTarget) -> ssl.SSLContext | bool:
        """Return the context for asyncpg, or False for plain text. Raises ConfigurationError for an unusable file.

        asyncpg/connect_utils.py: with a context, asyncpg never falls back to plain text.
        """
        if target.sslmode == "disable":
            return False
        key = target.sslmode, target.ssl_root_cert, target.ssl_cert, target.ssl_key, target.host
        if key not in self._made:
            self._made[key] = _make(target)
        return self._made[key]


def _make(target: ConnectTarget) -> ssl.SSLContext:
    # not ssl.create_default_context(), which since Python 3.13 refuses certificates that libpq accepts
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.host = target.host
    context.check_hostname = target.sslmode == "verify-full"
    if target.sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
    elif target.ssl_root_cert is None:
        context.load_default_certs()
    elif not _loaded(context, target.ssl_root_cert):
        raise ConfigurationError(f"{label('ssl_root_cert')} must name a readable PEM file of CA certificates.")
    if target.ssl_cert is not None and not _identified(context, target.ssl_cert, target.ssl_key):
        raise ConfigurationError(
            f"{label('ssl_cert')} and {label('ssl_key')} must name readable PEM files of a certificate and of its"
            " unencrypted private key."
        )
    return context


def _loaded(context: ssl.SSLContext, path: str) -> bool:
    try:
        context.load_verify_locations(cafile=path)
    except OSError:  # no such file, no permission to read it, or no certificate in it
        return False
    return True


def _identified(context: ssl.SSLContext, certificate: str, key: str | None) -> bool:
    try:
        # without a password, OpenSSL would ask for one on the terminal
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError):  # no such file, nothing usable in it, another certificate's key, or an encrypted key
        return False
    return True
