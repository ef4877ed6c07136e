"""Is an idle session still good? The decision is pure; the only I/O is a poll of its socket, about a microsecond."""

from __future__ import annotations

import enum
import functools
import select
from collections.abc import Callable

PING_AFTER = 1.0
"""Seconds of idleness after which a clean socket no longer proves anything: a path can die silently."""

PING_TIMEOUT = 0.5
"""Seconds that one ping or one polite goodbye may take, at most."""

_PING_LEAST = 0.1


class Health(enum.Enum):
    """What a borrower may do with an idle session."""

    GOOD = "good"
    """Lend it as it is."""
    SUSPECT = "suspect"
    """Ping it first."""
    LOST = "lost"
    IDLE_TIMEOUT = "idle_timeout"
    MAX_LIFETIME = "max_lifetime"


def assess(closed: bool, readable: object, idle: float, idle_timeout: float, age: float, lifetime: float) -> Health:
    """Decide what to do with a session; all times are seconds, `lifetime` 0 means for ever.

    `readable` while idle is a FIN, a RST or a FATAL message, but perhaps only a notice or a TLS session ticket.
    """
    if closed:
        return Health.LOST
    if idle >= idle_timeout:
        return Health.IDLE_TIMEOUT
    if lifetime and age >= lifetime:
        return Health.MAX_LIFETIME
    if readable or idle >= PING_AFTER:
        return Health.SUSPECT
    return Health.GOOD


def ping_bound(remaining: float) -> float:
    """Seconds for one ping, leaving most of the `remaining` seconds to a new connection.

    Not less than 0.1, whoever has no time for that: a session is not given up for its borrower's haste.
    """
    return min(PING_TIMEOUT, max(remaining / 4, _PING_LEAST))


def socket_probe(descriptor: int | None) -> Callable[[], object]:
    """Return a function whose result is true if the socket has anything to read or is hung up.

    Where there is no descriptor or no poll(2), it always says yes: then each borrow pings.
    """
    if descriptor is None or not hasattr(select, "poll"):
        return lambda: True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLPRI)  # POLLERR, POLLHUP and POLLNVAL come unasked
    return functools.partial(poller.poll, 0)
