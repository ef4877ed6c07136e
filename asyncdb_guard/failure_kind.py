"""What a failure says about how soon another attempt makes sense. Pure: no I/O, no clock, no state."""

from __future__ import annotations

import enum
import errno

import asyncpg

from asyncdb_guard.errors import ConnectTimeoutError, DeadlineExceededError
from asyncdb_guard.verdict import cause_of, members, sqlstate_of


class FailureKind(enum.Enum):
    """How the database failed; decides how long the circuit stays open."""

    ANSWERED = "answered"
    """The server or its host answered: nothing listens there, a session was reset, the server went down."""
    STARTING = "starting"
    """57P03: the server is starting up or shutting down."""
    FULL = "full"
    """Class 53: the server has no connections or memory left. A refusal costs it nearly as much as a login."""
    SILENT = "silent"
    """No answer at all: a caller waited until a timeout."""


_CANNOT_CONNECT_NOW = "57P03"
_INSUFFICIENT_RESOURCES = "53"
_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
_TIMEOUTS = (TimeoutError, ConnectTimeoutError, DeadlineExceededError)


def failure_kind(error: BaseException | None) -> FailureKind:
    """Return the kind of the failure that ended a connect or a block.

    | what ended it                                                            | kind     |
    |--------------------------------------------------------------------------|----------|
    | SQLSTATE 57P03                                                           | starting |
    | SQLSTATE class 53                                                        | full     |
    | a timeout, no route to the host, a deadline that was spent in a statement | silent   |
    | anything else: refused, reset, 57P01, 57P02, class 08, a lost session    | answered |

    An error that wraps the driver's counts as its cause, and a group as the member that needs the longest pause.
    """
    kinds = (
        [_own_kind(one) for member in members(error) for one in (member, cause_of(member))] if error is not None else []
    )
    return max(kinds, key=list(FailureKind).index, default=FailureKind.ANSWERED)


def _own_kind(error: BaseException | None) -> FailureKind:
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = sqlstate_of(error) or ""
        if sqlstate == _CANNOT_CONNECT_NOW:
            return FailureKind.STARTING
        if sqlstate[:2] == _INSUFFICIENT_RESOURCES:
            return FailureKind.FULL
    elif isinstance(error, _TIMEOUTS) or (isinstance(error, OSError) and error.errno in _NO_ROUTE):
        return FailureKind.SILENT
    return FailureKind.ANSWERED
