"""The client of redis-py: built, replaced after a failure, and replaced by a client for a cluster if it is one."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from asyncdb_guard.cognito.caching.redis.diagnosis import Diagnosis, diagnose
from asyncdb_guard.connect.redis_client import create_client
from asyncdb_guard.errors import CacheUnavailableError, ConfigurationError
from asyncdb_guard.events import logger
from asyncdb_guard.settings.problems import label

if TYPE_CHECKING:
    from asyncdb_guard.settings import DatabaseSettings

T = TypeVar("T")


class _Failure(NamedTuple):
    """A command that failed."""

    diagnosis: Diagnosis
    proven: bool
    """Whether a command had succeeded before on this client."""
    learned: bool
    """Whether the next attempt uses another kind of client."""


_MAX_ATTEMPTS = 3
"""One, one more on a new connection, and one more as a cluster's client."""


class RedisClient:
    """Runs commands on a server that may fail over, or turn out to be a cluster; lives as long as its cache.

    Blocking and safe for threads. After a failure all connections are dropped, so that the next command looks the host
    name up again: after a failover, the name leads to another server.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        """Does not connect yet. Raises ConfigurationError if the extra is missing or a file is unusable."""
        _check_files(settings)
        self._settings = settings
        self._lock = threading.Lock()
        self._is_cluster = False
        self._proven = False
        """Whether a command has succeeded on this client."""
        self._client: Any = _create(settings, is_cluster=False)

    def run(self, command: Callable[[Any], T]) -> T:
        """Return `command(client)`. Raises CacheUnavailableError.

        A command that fails on a connection that has worked before is repeated once on a new one. So commands must be
        idempotent.
        """
        attempts = 0
        while True:
            result = self._try(command)
            if not isinstance(result, _Failure):
                return result
            again = result.learned or (not attempts and result.proven and not result.diagnosis.timed_out)
            attempts += 1
            if not again or attempts == _MAX_ATTEMPTS:
                raise CacheUnavailableError(result.diagnosis.text, answered=result.diagnosis.answered)

    def _try(self, command: Callable[[Any], T]) -> T | _Failure:
        """The error of redis-py, and the client, which both name the host, stay in this frame."""
        client, proven = None, False
        try:
            client, proven = self._current()
            result = command(client)
        except Exception as error:
            diagnosis = diagnose(error)
            return _Failure(diagnosis, proven, learned=self._replace(client, is_cluster=diagnosis.is_cluster))
        self._proven = True
        return result

    def _current(self) -> tuple[Any, bool]:
        with self._lock:
            if self._client is None:
                self._client = _create(self._settings, is_cluster=self._is_cluster)
            return self._client, self._proven

    def _replace(self, failed: Any, *, is_cluster: bool | None) -> bool:
        """Drop the client that failed, unless another thread already has. Calls in progress finish on it.

        Return whether another kind of client is needed from now on.
        """
        with self._lock:
            learned = is_cluster is not None and is_cluster is not self._is_cluster
            if learned:
                self._is_cluster = bool(is_cluster)
                logger.info("The claims cache %s a cluster.", "is" if is_cluster else "is no longer")
            if self._client is failed:
                self._client, self._proven = None, False
            return learned


def _create(settings: DatabaseSettings, *, is_cluster: bool) -> Any:
    options: dict[str, str] = {}
    if settings.claims_cache_ssl_root_cert is not None:
        options["ssl_ca_certs"] = settings.claims_cache_ssl_root_cert
    if settings.claims_cache_ssl_cert is not None:
        options["ssl_certfile"] = settings.claims_cache_ssl_cert
        options["ssl_keyfile"] = settings.claims_cache_ssl_key or settings.claims_cache_ssl_cert
    assert settings.claims_cache_url is not None
    return create_client(
        settings.claims_cache_url.get_secret_value(), "claims_cache_url", is_cluster=is_cluster, **options
    )


def _check_files(settings: DatabaseSettings) -> None:
    """Raise ConfigurationError if TLS could not use a file. redis-py would say so at each connect only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    root_cert, cert = settings.claims_cache_ssl_root_cert, settings.claims_cache_ssl_cert
    if root_cert is not None and not _can(lambda: context.load_verify_locations(root_cert)):
        raise ConfigurationError(
            f"{label('claims_cache_ssl_root_cert')} must name a readable PEM file of CA certificates."
        )
    # The empty password refuses an encrypted key; without one, OpenSSL would ask on the terminal.
    if cert is not None and not _can(
        lambda: context.load_cert_chain(cert, settings.claims_cache_ssl_key or cert, password="")
    ):
        raise ConfigurationError(
            f"{label('claims_cache_ssl_cert')} and {label('claims_cache_ssl_key')} must name readable PEM files of a"
            " client certificate and its key, which is not encrypted."
        )


def _can(load: Callable[[], None]) -> bool:
    try:
        load()
    except OSError:  # no such file, no permission to read it, or nothing of use in it
        return False
    return True
