"""What a listener (`on_event=`) can hear. Frozen facts with a `name`; none carries a secret or a person."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar, NoReturn, TypeAlias

logger = logging.getLogger("asyncdb_guard")
logger.addHandler(logging.NullHandler())  # silent, until the application says where to


class Event:
    """The base of all events."""

    name: ClassVar[str] = "event"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        # dataclasses.py: a frozen class leaves what is no field of its own to the class above
        raise FrozenInstanceError(f"cannot assign to {name!r}")


# One dataclass for each shape, and events that inherit from it: a dataclass costs a cold start half a millisecond.
@dataclass(frozen=True)
class _PlainEvent(Event):
    pass


@dataclass(frozen=True)
class _TimedEvent(Event):
    seconds: float


@dataclass(frozen=True)
class _ReasonedEvent(Event):
    reason: str


class CacheHit(_PlainEvent):
    """`load_claims` was answered from the claims cache."""

    name = "cache_hit"


class CacheMiss(_PlainEvent):
    """`load_claims` had to ask the database. One event a load, however many callers share it."""

    name = "cache_miss"


class ConnectionOpened(_TimedEvent):
    """A server session was opened. `seconds`: what that took."""

    name = "connection_opened"


class ConnectionReplaced(_ReasonedEvent):
    """A session was found unusable at its next borrow, and another is opened in its place.

    `reason`: `lost`, `unresponsive`, `idle_timeout` or `max_lifetime`.
    """

    name = "connection_replaced"


class ConnectionClosed(_ReasonedEvent):
    """A session ended and nothing took its place.

    `reason`: `idle_timeout`, `lost`, `unclean`, `unresponsive`, `close` or `loop_closed`.
    """

    name = "connection_closed"


class GrowthPaused(_TimedEvent):
    """A connect failed while other connections were in use: the pool opens no further one for a while.

    `seconds`: for how long. No caller fails; each waits for one of the connections in use.
    """

    name = "growth_paused"


class AcquireTimeout(_TimedEvent):
    """A caller got no connection within its timeout. `seconds`: how long it had waited."""

    name = "acquire_timeout"


class CircuitOpened(_TimedEvent):
    """The breaker tripped, or a trial failed. `seconds`: how long the circuit stays open."""

    name = "circuit_opened"


class CircuitHalfOpened(_PlainEvent):
    """The open period is over and one caller is let through."""

    name = "circuit_half_opened"


class CircuitClosed(_PlainEvent):
    """A trial succeeded."""

    name = "circuit_closed"


class CircuitRejected(_PlainEvent):
    """A caller was refused because the circuit is open."""

    name = "circuit_rejected"


Listener: TypeAlias = Callable[[Event], object]


class Events:
    """Hands each event to every listener; lives as long as its pool.

    A listener that raises is logged and harms nothing, neither the caller nor the other listeners. What could never
    hear an event is refused with a TypeError as soon as it is given.
    """

    __slots__ = ("_listeners",)

    def __init__(self, listeners: Listener | Iterable[Listener] = ()) -> None:
        self._listeners = _fit(listeners)

    def add(self, listener: Listener) -> None:
        """Let `listener` hear every event from now on."""
        self._listeners += _fit((listener,))

    def remove(self, listener: Listener) -> None:
        """Stop telling `listener`. One that was added twice is removed once; one that was not is no error."""
        if listener in self._listeners:
            at = self._listeners.index(listener)
            self._listeners = self._listeners[:at] + self._listeners[at + 1 :]

    def emit(self, event: Event) -> None:
        """Tell every listener, in the order in which they were given."""
        for listener in self._listeners:
            try:
                listener(event)
            except (Exception, asyncio.CancelledError) as error:  # of a future that the listener looked at
                # The type alone: a listener's own text may carry anything.
                logger.error("A listener failed on %s with %s.", event.name, type(error).__name__)


def _fit(given: Any) -> tuple[Listener, ...]:
    listeners: tuple[Any, ...] = (given,)
    if hasattr(given, "__iter__") and not callable(given):
        listeners = tuple(given)
    for listener in listeners:
        # An object's own __call__ is looked up on its type.
        calls = (listener, type(listener).__call__) if callable(listener) else ()
        if not calls or any(map(inspect.iscoroutinefunction, calls)):
            raise TypeError(
                "on_event= takes one function or several, each a plain `def listener(event)`: nothing awaits an"
                " `async def`, so start a task in a plain one."
            )
    return listeners


def log_events(event: Event) -> None:
    """A listener (`on_event=log_events`) that writes every event to the logger `asyncdb_guard`, at INFO.

    The record has the event's name as `event` and its facts as `facts`, for structured logs.
    """
    facts = dict(vars(event))
    told = "".join(f" {name}={value}" for name, value in facts.items())
    logger.info("%s%s", event.name, told, extra={"event": event.name, "facts": facts})
