"""What the end of a block says about the database. Pure: no I/O, no clock, no state."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Iterator
from typing import TypeAlias, cast

import asyncpg

from asyncdb_guard.errors import ConnectFailedError, DeadlineExceededError

_Group: TypeAlias = "BaseExceptionGroup[BaseException]"


class Verdict(enum.Enum):
    """gobreaker's three outcomes."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


_OURS_TO_BLAME = frozenset({"57P05", "25P03"})
"""idle_session_timeout and idle_in_transaction_session_timeout: set by us, met by a block that paused."""

_UNWELL = frozenset({"57P01", "57P02", "57P03"})
"""admin_shutdown, crash_shutdown, cannot_connect_now."""

_UNWELL_CLASSES = frozenset({"08", "53"})
"""Connection exceptions and insufficient resources (53300: full server, role limit or reserved slots)."""

_LAST_WORDS = frozenset({"FATAL", "PANIC"})
"""The severities with which a server ends a session. Where lc_messages has others, a place rests for longer."""

_LOGIN_REFUSED = "28"
"""The class of invalid_password and invalid_authorization_specification."""

# asyncpg/connection.py: COPY opens, reads and writes files in a thread of concurrent.futures, where nothing else of
# asyncpg's runs; so that package is not seen through, and a full disk is not the database's failure.
_SEEN_THROUGH = (sys.stdlib_module_names | {"uvloop"}) - {"concurrent"}


def judge(error: BaseException | None, *, lost: bool = False, paused: bool = False) -> Verdict:
    """Decide whether `error`, which ended a block or a connect, counts against the database.

    `lost`: the session is gone, and not by the borrower's own hand. `paused`: the block held it for longer than the
    idle timeout, so that we ended it.

    | what ended the block                                                  | verdict |
    |-----------------------------------------------------------------------|---------|
    | nothing                                                               | success |
    | SQLSTATE class 08 or 53, 57P01, 57P02, 57P03                          | failure |
    | SQLSTATE 57P05 or 25P03, also as the cause of a lost connection       | neutral |
    | any other SQLSTATE: the server answered                               | success |
    | an OSError or TimeoutError that the driver raised                     | failure |
    | the caller's own deadline, spent in a statement                       | failure |
    | nothing, or any other error, while the session was lost               | failure |
    | the same after a pause                                                | neutral |
    | a group of errors, as a TaskGroup raises them                         | its worst |
    | anything else: cancellation, a KeyError, the block's own HTTP or file | neutral |
    """
    if error is None and not lost:
        return Verdict.SUCCESS
    if isinstance(error, asyncpg.PostgresError):
        return _judge_sqlstate(error)
    if isinstance(error, DeadlineExceededError):
        return Verdict.FAILURE
    if isinstance(error, BaseExceptionGroup):
        return _worst(judge(one, lost=lost, paused=paused) for one in cast(_Group, error).exceptions)
    if isinstance(error, OSError) and raised_by_driver(error):  # TimeoutError is one, too
        return Verdict.FAILURE
    cancelled = error is not None and not isinstance(error, Exception)
    if (lost and not cancelled) or (error is not None and is_lost(error, lost=lost)):
        return Verdict.NEUTRAL if paused else Verdict.FAILURE
    return Verdict.NEUTRAL


def judge_connect(error: Exception, *, renewed: bool = False) -> Verdict:
    """The same for a connect that failed: whatever the network or our own bound raised is the database's failure.

    A ConnectFailedError is that of a provider of credentials which has none just now.
    `renewed`: the login was tried once more with credentials fetched anew. Then its refusal is a failure, too.
    """
    if isinstance(error, OSError | ConnectFailedError) or (renewed and _class_of(error) == _LOGIN_REFUSED):
        return Verdict.FAILURE
    return judge(error)


def _judge_sqlstate(error: asyncpg.PostgresError) -> Verdict:
    # asyncpg/protocol/protocol.pyx: the FATAL that ended a session is the cause of its ConnectionDoesNotExistError
    last_words = error.__cause__ if isinstance(error, asyncpg.ConnectionDoesNotExistError) else None
    if sqlstate_of(error) in _OURS_TO_BLAME or sqlstate_of(last_words) in _OURS_TO_BLAME:
        return Verdict.NEUTRAL
    if sqlstate_of(error) in _UNWELL or _class_of(error) in _UNWELL_CLASSES:
        return Verdict.FAILURE
    return Verdict.SUCCESS


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return min(verdicts, key=[Verdict.FAILURE, Verdict.SUCCESS, Verdict.NEUTRAL].index)


def _class_of(error: BaseException) -> str:
    return (sqlstate_of(error) or "")[:2]


def sqlstate_of(error: BaseException | None) -> str | None:
    """The five characters that the server, or the driver in its name, gave as the reason.

    Of no other error: what somebody else's attribute of that name holds may be anything.
    """
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def is_lost(error: BaseException, *, lost: bool = True) -> bool:
    """Whether `error` says that the session died under its user.

    `lost` is what the session itself says; an InterfaceError alone may also be a mistake of the caller.
    """
    if isinstance(error, asyncpg.ConnectionDoesNotExistError):
        return True
    if isinstance(error, asyncpg.InternalClientError):
        # a FATAL read between two statements leaves asyncpg's protocol out of step: "cannot switch to state …"
        return raised_by_driver(error)
    if isinstance(error, asyncpg.InterfaceError):
        return lost and raised_by_driver(error)
    return False


def server_spoke(error: BaseException | None) -> bool:
    """Whether the server's own last word is behind `error`: then it knows that the session is over.

    Where a session was lost without one, the server may still run a statement of it.
    """
    return error is not None and any(
        isinstance(one, asyncpg.PostgresError) and getattr(one, "severity", None) in _LAST_WORDS
        for one in chain_of(error)
    )


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """`error`, and whatever a traceback of it would show besides: members of groups, causes and contexts, each once."""
    untold, seen = [error], {id(error)}
    for one in untold:  # grows below
        yield one
        context = None if one.__suppress_context__ else one.__context__
        members = cast(_Group, one).exceptions if isinstance(one, BaseExceptionGroup) else ()
        for other in (*members, one.__cause__ or context):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                untold.append(other)


def raised_by_driver(error: BaseException) -> bool:
    """Whether the innermost frame outside the standard library is asyncpg's own.

    So a TimeoutError of the borrower's HTTP call, even inside a callback that asyncpg calls, is not the driver's, and
    neither is an OSError of a file that COPY reads or writes.
    """
    innermost = ""
    trace = error.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _SEEN_THROUGH:
            innermost = package
        trace = trace.tb_next
    return innermost == "asyncpg"
