"""What a listener (`on_event=`) receives: frozen dataclasses with a `name`, without secrets or personal data."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias

logger = logging.getLogger("asyncdb_guard")
logger.addHandler(logging.NullHandler())  # silent until the application configures logging

EventName: TypeAlias = Literal[
    "cache_hit",
    "cache_miss",
    "connection_opened",
    "connection_replaced",
    "connection_closed",
    "connection_held",
    "growth_paused",
    "acquire_timeout",
    "circuit_opened",
    "circuit_half_opened",
    "circuit_closed",
    "circuit_rejected",
]
"""The `name` of every event."""


class Event:
    """The base class of all events."""

    name: ClassVar[EventName]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        # dataclasses.py: a frozen class hands names that are not its own fields to its base class
        raise FrozenInstanceError(f"cannot assign to {name!r}")


# One dataclass per shape, from which the events inherit: each dataclass adds to a cold start, and twice as much without
# a docstring, as it then writes its own.
@dataclass(frozen=True)
class _PlainEvent(Event):
    """An event that says all with its name."""


@dataclass(frozen=True)
class _TimedEvent(Event):
    """An event with a duration."""

    seconds: float


@dataclass(frozen=True)
class _ReasonedEvent(Event):
    """An event with a reason."""

    reason: str


class CacheHit(_PlainEvent):
    """`load_claims` answered from the claims cache."""

    name = "cache_hit"


class CacheMiss(_PlainEvent):
    """`load_claims` queried the database. One event per load, however many callers share it."""

    name = "cache_miss"


class ConnectionOpened(_TimedEvent):
    """A server session was opened. `seconds`: how long the connect took."""

    name = "connection_opened"


class ConnectionReplaced(_ReasonedEvent):
    """A session was found unusable when it was next needed; a new one replaces it.

    `reason`: `lost`, `unresponsive`, `idle_timeout`, `max_lifetime`, `read_only` or `wrong_node`.
    """

    name = "connection_replaced"


class ConnectionClosed(_ReasonedEvent):
    """A session ended and was not replaced.

    `reason`: `idle_timeout`, `lost`, `unclean`, `unresponsive`, `read_only`, `close` or `loop_closed`.
    """

    name = "connection_closed"


class ConnectionHeld(_TimedEvent):
    """A block has held its connection for longer than HOLD_WARNING, and still does. `seconds`: for how long."""

    name = "connection_held"


class GrowthPaused(_TimedEvent):
    """A connect failed while others were in use or being opened, so the pool stops opening more for a while.

    `seconds`: the length of the pause. No caller gets the error: those who wait may get one of the other connections.
    """

    name = "growth_paused"


class AcquireTimeout(_TimedEvent):
    """A caller got no connection within its timeout. `seconds`: how long it waited."""

    name = "acquire_timeout"


class CircuitOpened(_TimedEvent):
    """Too many consecutive failures, or a failed trial, opened the circuit. `seconds`: how long it stays open."""

    name = "circuit_opened"


class CircuitHalfOpened(_PlainEvent):
    """The open period is over; one caller may try."""

    name = "circuit_half_opened"


class CircuitClosed(_PlainEvent):
    """A trial succeeded and closed the circuit."""

    name = "circuit_closed"


class CircuitRejected(_PlainEvent):
    """A caller was refused because the circuit was open."""

    name = "circuit_rejected"


Listener: TypeAlias = Callable[[Event], object]
"""A plain function that receives each event. Its result is ignored."""


class Events:
    """Passes each event to every listener; lives as long as its pool.

    A listener that raises is logged; the caller and the other listeners are unaffected. Raises TypeError at once for
    anything that is not a plain callable.
    """

    __slots__ = ("_listeners",)

    def __init__(self, listeners: Listener | Iterable[Listener] = ()) -> None:
        self._listeners = _checked(listeners)

    def add(self, listener: Listener) -> None:
        """Send every event to `listener`, too, from now on."""
        self._listeners += _checked((listener,))

    def remove(self, listener: Listener) -> None:
        """Stop telling `listener`. One that was added twice is removed once; one that was not is no error."""
        if listener in self._listeners:
            at = self._listeners.index(listener)
            self._listeners = self._listeners[:at] + self._listeners[at + 1 :]

    def emit(self, event: Event) -> None:
        """Call every listener with `event`, in the order in which they were added."""
        for listener in self._listeners:
            try:
                listener(event)
            except (Exception, asyncio.CancelledError) as error:  # raised by a future that the listener looked at
                # the type alone: the text of a listener's error may contain anything
                logger.error("A listener failed on %s with %s.", event.name, type(error).__name__)


def _checked(given: Any) -> tuple[Listener, ...]:
    listeners: tuple[Any, ...] = (given,)
    if hasattr(given, "__iter__") and not callable(given):
        listeners = tuple(given)
    for listener in listeners:
        # Python looks __call__ up on the type of an object
        calls = (listener, type(listener).__call__) if callable(listener) else ()
        if not calls or any(map(inspect.iscoroutinefunction, calls)):
            raise TypeError(
                "on_event= takes one function or several, each a plain `def listener(event)`. An `async def` would"
                " never be awaited; start a task from a plain function instead."
            )
    return listeners


def log_events(event: Event) -> None:
    """A listener (`on_event=log_events`) that writes every event to the logger `asyncdb_guard`, at level INFO.

    For structured logs, each record has the event's name as `event` and its fields, a dictionary, as `facts`.
    """
    facts = dict(vars(event))
    fields = "".join(f" {name}={value}" for name, value in facts.items())
    logger.info("%s%s", event.name, fields, extra={"event": event.name, "facts": facts})
