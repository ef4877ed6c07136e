"""Every error that this library raises. They share one base class, and their texts are safe to show to anybody."""

from __future__ import annotations


class GuardError(Exception):
    """The base class of all errors of this library."""


class ConfigurationError(GuardError):
    """A setting is wrong, unknown or contradictory. The text names every such setting and never a secret."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        """One text per fault, each with its remedy."""
        super().__init__(*faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return self.faults[0]
        return f"{len(self.faults)} settings are wrong:" + "".join(f"\n- {fault}" for fault in self.faults)


class PoolClosedError(GuardError):
    """The pool was used after `close()`."""

    def __init__(
        self,
        message: str = "The pool is closed. Create a new one, or call disconnect() to drop connections and keep the"
        " pool.",
    ) -> None:
        super().__init__(message)


class PoolInUseError(GuardError):
    """The pool was used from a second event loop while the first was still running."""

    def __init__(
        self,
        message: str = "The pool is in use on another event loop that is still running. Create one GuardedPool for each"
        " thread that runs an event loop.",
    ) -> None:
        super().__init__(message)


class DatabaseUnavailableError(GuardError):
    """The database is unavailable. A later attempt may succeed."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds until another attempt makes sense, or None if that is unknown."""


class CircuitOpenError(DatabaseUnavailableError):
    """The circuit breaker refused the call, without touching the network. `retry_after` is always set."""


class ConnectFailedError(DatabaseUnavailableError):
    """A connection could not be opened. `__cause__` is the driver's error."""


class AcquireTimeoutError(DatabaseUnavailableError):
    """No connection became free within the timeout."""


class ConnectTimeoutError(ConnectFailedError, AcquireTimeoutError):
    """The timeout expired during a connect: both a failed connect and an acquire timeout."""


class DeadlineExceededError(DatabaseUnavailableError):
    """The caller's own deadline expired while a statement of its block was still running."""


class StatementTimeoutError(GuardError, TimeoutError):
    """A bound of this library ended a statement: COMMAND_TIMEOUT, or its own `timeout=`. The text says which.

    `__cause__` is the driver's error: TimeoutError, or QueryCanceledError where the server kept the bound.
    """

    def __init__(self, message: str, *, timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout
        """The bound in seconds."""


class CacheUnavailableError(GuardError):
    """The shared claims cache did not do what it was asked. A later attempt may succeed."""

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        """Whether the cache answered and refused; otherwise it is unknown whether it did what it was asked."""


class TriggerFailedError(GuardError):
    """The only error that a Cognito trigger raises.

    Cognito shows its text to the person who signs in, so the text is fixed; the cause goes to the log only.
    """


class TriggerEventError(TriggerFailedError):
    """The trigger does not handle this event. The text names the field, never its value."""
