"""What a listener (`on_event=`) can hear. Frozen facts with a `name`; none carries a secret or a person."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

logger = logging.getLogger("asyncdb_guard")


@dataclass(frozen=True, slots=True)
class Event:
    """The base of all events."""

    name: ClassVar[str] = "event"


@dataclass(frozen=True, slots=True)
class CacheHit(Event):
    """`load_claims` was answered from the claims cache."""

    name: ClassVar[str] = "cache_hit"


@dataclass(frozen=True, slots=True)
class CacheMiss(Event):
    """`load_claims` had to ask the database. One event a load, however many callers share it."""

    name: ClassVar[str] = "cache_miss"


@dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """A server session was opened."""

    name: ClassVar[str] = "connection_opened"
    seconds: float
    """What opening it took."""


@dataclass(frozen=True, slots=True)
class ConnectionReplaced(Event):
    """A session was found unusable at its next borrow, and another is opened in its place."""

    name: ClassVar[str] = "connection_replaced"
    reason: str
    """`lost`, `unresponsive`, `idle_timeout` or `max_lifetime`."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed(Event):
    """A session ended and nothing took its place."""

    name: ClassVar[str] = "connection_closed"
    reason: str
    """`idle_timeout`, `lost`, `unclean`, `unresponsive`, `close` or `loop_closed`."""


@dataclass(frozen=True, slots=True)
class AcquireTimeout(Event):
    """A caller got no connection within its timeout."""

    name: ClassVar[str] = "acquire_timeout"
    seconds: float
    """How long it had waited."""


@dataclass(frozen=True, slots=True)
class CircuitOpened(Event):
    """The breaker tripped, or a trial failed."""

    name: ClassVar[str] = "circuit_opened"
    seconds: float
    """How long the circuit stays open."""


@dataclass(frozen=True, slots=True)
class CircuitHalfOpened(Event):
    """The open period is over and one caller is let through."""

    name: ClassVar[str] = "circuit_half_opened"


@dataclass(frozen=True, slots=True)
class CircuitClosed(Event):
    """A trial succeeded."""

    name: ClassVar[str] = "circuit_closed"


@dataclass(frozen=True, slots=True)
class CircuitRejected(Event):
    """A caller was refused because the circuit is open."""

    name: ClassVar[str] = "circuit_rejected"


Listener: TypeAlias = Callable[[Event], object]


class Events:
    """Hands each event to every listener; lives as long as its pool.

    A listener that raises is logged and harms nothing, neither the caller nor the other listeners.
    """

    __slots__ = ("_listeners",)

    def __init__(self, listeners: Listener | Iterable[Listener] = ()) -> None:
        self._listeners: tuple[Listener, ...] = (listeners,) if callable(listeners) else tuple(listeners)

    def add(self, listener: Listener) -> None:
        """Let `listener` hear every event from now on."""
        self._listeners = (*self._listeners, listener)

    def emit(self, event: Event) -> None:
        """Tell every listener, in the order in which they were given."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                # The type alone: a listener's own text may carry anything.
                logger.error("A listener failed on %s with %s.", event.name, type(error).__name__)
