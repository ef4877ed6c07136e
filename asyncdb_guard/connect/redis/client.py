"""The client of redis-py: built, replaced after a failure, and replaced by a client for a cluster if it is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from asyncdb_guard.connect.redis.diagnosis import Diagnosis, diagnose
from asyncdb_guard.connect.redis.endpoint import RedisEndpoint
from asyncdb_guard.connect.redis.opening import create_client
from asyncdb_guard.errors import GuardError
from asyncdb_guard.events import logger

T = TypeVar("T")


class _Failure(NamedTuple):
    """A command that failed."""

    diagnosis: Diagnosis
    proven: bool
    """Whether a command had succeeded before on this client."""
    learned: bool
    """Whether the next attempt uses another kind of client."""


class RedisUnavailableError(GuardError):
    """It did not do what it was asked. The text says why, with a remedy, and names no host."""

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered
        """Whether it answered and refused; otherwise it is unknown whether it did what it was asked."""


_MAX_ATTEMPTS = 3
"""One, one more on a new connection, and one more as a cluster's client."""


class RedisClient:
    """Runs commands on a server that may fail over, or turn out to be a cluster; lives as long as its user.

    Blocking and safe for threads. After a failure all connections are dropped, so that the next command looks the host
    name up again: after a failover, the name leads to another server.
    """

    def __init__(self, endpoint: RedisEndpoint, **options: Any) -> None:
        """Does not connect yet. Raises ConfigurationError if the extra is missing or a file is unusable.

        `options` are redis-py's.
        """
        endpoint.check_files()
        self._endpoint = endpoint
        self._options = options
        self._lock = threading.Lock()
        self._is_cluster = False
        self._proven = False
        """Whether a command has succeeded on this client."""
        self._client: Any = self._create()

    def run(self, command: Callable[[Any], T]) -> T:
        """Return `command(client)`. Raises RedisUnavailableError.

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
                raise RedisUnavailableError(result.diagnosis.text, answered=result.diagnosis.answered)

    def close(self) -> None:
        """Close its connections; the next command opens new ones."""
        with self._lock:
            client, self._client, self._proven = self._client, None, False
        if client is not None:
            client.close()

    def _create(self) -> Any:
        endpoint = self._endpoint
        return create_client(
            endpoint.url.get_secret_value(), endpoint.url_setting, is_cluster=self._is_cluster,
            **endpoint.options, **self._options,
        )  # fmt: skip

    def _try(self, command: Callable[[Any], T]) -> T | _Failure:
        """The error of redis-py, and the client, which both name the host, stay in this frame."""
        client, proven = None, False
        try:
            client, proven = self._current()
            result = command(client)
        except Exception as error:
            diagnosis = diagnose(error, self._endpoint)
            return _Failure(diagnosis, proven, learned=self._replace(client, is_cluster=diagnosis.is_cluster))
        self._proven = True
        return result

    def _current(self) -> tuple[Any, bool]:
        with self._lock:
            if self._client is None:
                self._client = self._create()
            return self._client, self._proven

    def _replace(self, failed: Any, *, is_cluster: bool | None) -> bool:
        """Drop the client that failed, unless another thread already has. Calls in progress finish on it.

        Return whether another kind of client is needed from now on.
        """
        with self._lock:
            learned = is_cluster is not None and is_cluster is not self._is_cluster
            if learned:
                self._is_cluster = bool(is_cluster)
                logger.info("The %s %s a cluster.", self._endpoint.subject, "is" if is_cluster else "is no longer")
            if self._client is failed:
                self._client, self._proven = None, False
            return learned
