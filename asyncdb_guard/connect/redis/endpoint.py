"""Which Redis, how TLS is spoken with it, and what the texts about it say. Pure, but for the check of its files."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import NamedTuple

from pydantic import SecretStr

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings.problems import label


# No dataclass, as each adds half a millisecond to a cold start.
class RedisEndpoint(NamedTuple):
    """A Redis that a setting names; the settings of its files begin with `prefix`, as in `claims_cache_ssl_cert`."""

    url: SecretStr
    prefix: str
    subject: str
    """What it is to its user: `claims cache`."""
    rights: str
    """The commands and keys that it needs, for a remedy: `EVAL and GET on ...`."""
    root_cert: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def url_setting(self) -> str:
        """The setting that has the URL."""
        return f"{self.prefix}_url"

    @property
    def options(self) -> dict[str, str]:
        """TLS, in redis-py's words."""
        options: dict[str, str] = {}
        if self.root_cert is not None:
            options["ssl_ca_certs"] = self.root_cert
        if self.cert is not None:
            options["ssl_certfile"] = self.cert
            options["ssl_keyfile"] = self.key or self.cert
        return options

    def check_files(self) -> None:
        """Raise ConfigurationError if TLS could not use a file. redis-py would say so at each connect only."""
        if not self.options:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        root_cert, cert = self.root_cert, self.cert
        if root_cert is not None and not _can(lambda: context.load_verify_locations(root_cert)):
            raise ConfigurationError(
                f"{label(f'{self.prefix}_ssl_root_cert')} must name a readable PEM file of CA certificates."
            )
        # The empty password refuses an encrypted key; without one, OpenSSL would ask on the terminal.
        if cert is not None and not _can(lambda: context.load_cert_chain(cert, self.key or cert, password="")):
            raise ConfigurationError(
                f"{label(f'{self.prefix}_ssl_cert')} and {label(f'{self.prefix}_ssl_key')} must name readable PEM files"
                " of a client certificate and its key, which is not encrypted."
            )


def _can(load: Callable[[], None]) -> bool:
    try:
        load()
    except OSError:  # no such file, no permission to read it, or nothing of use in it
        return False
    return True
