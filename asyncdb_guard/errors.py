"""Everything this library raises. One root, and texts that are safe to show to anybody."""

from __future__ import annotations


class GuardError(Exception):
    """The root of all errors of this library."""


class ConfigurationError(GuardError):
    """A setting is wrong, unknown or contradictory. Names every such setting, never a secret."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        """One sentence a fault, each with its remedy."""
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
    """The pool was used from a second event loop while the first one was running."""

    def __init__(
        self,
        message: str = "The pool is in use on another event loop, which is still running. Create one GuardedPool for"
        " each thread that runs an event loop.",
    ) -> None:
        super().__init__(message)


class DatabaseUnavailableError(GuardError):
    """The database is unavailable. Trying again later may help."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which another try makes sense, or None where nobody knows."""


class CircuitOpenError(DatabaseUnavailableError):
    """Refused by the circuit breaker, without touching the network."""


class ConnectFailedError(DatabaseUnavailableError):
    """No session could be opened. `__cause__` is the driver's own error."""


class AcquireTimeoutError(DatabaseUnavailableError):
    """No connection became free within the timeout."""


class ConnectTimeoutError(ConnectFailedError, AcquireTimeoutError):
    """The timeout ended while the server was still being dialled: a failed connect and an acquire timeout in one."""


class DeadlineExceededError(DatabaseUnavailableError):
    """The caller's own deadline ended while a statement of its block was still running."""


class TriggerFailedError(GuardError):
    """All that a Cognito trigger ever raises.

    Cognito shows this text to the person who signs in, so it is fixed; the cause goes to the log only.
    """


class TriggerEventError(TriggerFailedError):
    """The event is none that this trigger handles. Names the field, never its value."""
