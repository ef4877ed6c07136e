"""What counts as a failure of the database, and of which kind: the end of a block, or of a connect. Pure: no state.

Three questions decide, no list of errors. Was it a connect? Is it about this statement? Is it about this session or
this node? Nothing here raises, whatever an error of somebody else's does when it is looked at: a judge that fails would
cost the pool the session's place.
"""

from __future__ import annotations

import enum
import errno
import re
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg

from asyncdb_guard.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    DeadlineExceededError,
    GuardError,
    StatementTimeoutError,
)

if TYPE_CHECKING:
    from typing import TypeGuard, TypeVar

    E = TypeVar("E", bound=BaseException)


class Verdict(enum.Enum):
    """gobreaker's three outcomes."""

    SUCCESS = enum.auto()
    FAILURE = enum.auto()
    NEUTRAL = enum.auto()


class FailureKind(enum.Enum):
    """How the database failed; decides how long the circuit stays open."""

    ANSWERED = enum.auto()
    """The server or its host answered: nothing listens there, a session was reset, the server went down."""
    STARTING = enum.auto()
    """57P03: the server is starting up or shutting down."""
    FULL = enum.auto()
    """Class 53: the server has no connections or memory left. A refusal costs it nearly as much as a login."""
    SILENT = enum.auto()
    """No answer at all: a caller waited until a timeout."""


_FORM = "[0-9A-Z]{5}"
"""An SQLSTATE: whatever else a server sends in its place is nobody's to show."""

_OURS_TO_BLAME = frozenset({"57P05", "25P03"})
"""idle_session_timeout and idle_in_transaction_session_timeout: set by us, met by a block that paused."""

_UNWELL = frozenset({"57P01", "57P02", "57P03"})
"""admin_shutdown, crash_shutdown, cannot_connect_now."""

_CONNECTION = "08"
"""The class of connection exceptions."""

_LOGIN = "28"
"""The class of invalid_password and invalid_authorization_specification."""

_OUR_SETTING = frozenset({"3D000", "42501", "22023", "42704"})
"""What a connect meets because a setting of ours is wrong: no such database, no right to connect to it, an invalid
value of a startup parameter, an unknown one."""

_READ_ONLY = "25006"
"""read_only_sql_transaction."""

_ENDS_SESSION = frozenset({"FATAL", "PANIC"})
"""The severities with which a server ends a session."""

# asyncpg/connection.py: COPY opens, reads and writes files in a thread of concurrent.futures, where nothing else of
# asyncpg's runs; so that package is not seen through, and a full disk is not the database's failure.
_SEEN_THROUGH = (sys.stdlib_module_names | {"uvloop"}) - {"concurrent"}

_CANNOT_CONNECT_NOW = "57P03"
_INSUFFICIENT_RESOURCES = "53"
_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
_TIMEOUTS = (TimeoutError, ConnectTimeoutError, DeadlineExceededError)


def judge(
    error: BaseException | None,
    *,
    lost: bool = False,
    paused: bool = False,
    held: float = float("inf"),
    command_timeout: float = 0.0,
    patience: float = 0.0,
) -> Verdict:
    """Decide whether `error`, which ended a block, counts against the database.

    `lost`: the session is gone, and not by the borrower's own hand. `paused`: the block held it for longer than the
    idle timeout, so that we ended it. In seconds: `held`, how long the block had the session; `command_timeout`, our
    bound on a statement; `patience`, how long the block of a trigger must have had the session before its deadline
    says something about the database.

    | question          | what ended the block                                                      | verdict |
    |-------------------|---------------------------------------------------------------------------|---------|
    |                   | nothing                                                                   | success |
    | this statement?   | an answer of severity ERROR, of any class, and the session lives          | success |
    |                   | ... such as 57014: a statement_timeout of the role's or of the block's    |         |
    |                   | own ended it, or an administrator. The server keeps its bounds, so it     |         |
    |                   | is well. Where that bound is shorter than COMMAND_TIMEOUT, a saturated    |         |
    |                   | server is not noticed by it                                               |         |
    |                   | the driver's own refusal of an argument (class 22)                        | success |
    |                   | COMMAND_TIMEOUT, or a `timeout=` that is not shorter, also while waiting  | failure |
    |                   | for a lock                                                                |         |
    |                   | a `timeout=` of the caller's that is shorter                              | neutral |
    |                   | a trigger's deadline, in a statement                                      | failure |
    |                   | the same, where the block had less than `patience`                        | neutral |
    | session or node?  | 57P05 or 25P03, also as the cause of a lost connection                    | neutral |
    |                   | severity FATAL or PANIC                                                   | failure |
    |                   | without a severity: class 08, 57P01, 57P02, 57P03                         | failure |
    |                   | an OSError that the driver raised                                         | failure |
    |                   | nothing, or any other error, while the session was lost                   | failure |
    |                   | the same after a pause                                                    | neutral |
    | none of these     | cancellation, a KeyError, the block's own HTTP call or file               | neutral |

    A group of errors, as a TaskGroup raises them, is as bad as its worst member.
    """
    if error is None:
        return _judge_loss(paused) if lost else Verdict.SUCCESS
    try:
        return _worst(_judge(one, lost, paused, held, command_timeout, patience) for one in members(error))
    except Exception:  # at the limit of the stack, say
        return Verdict.FAILURE if lost else Verdict.NEUTRAL


def _judge(
    error: BaseException, lost: bool, paused: bool, held: float, command_timeout: float, patience: float
) -> Verdict:
    if _is(error, StatementTimeoutError):
        error = cause_of(error) or error
    if _is(error, asyncpg.PostgresError):
        return _judge_answer(error, lost, paused)
    if _is(error, DeadlineExceededError):
        return Verdict.FAILURE if held >= patience else Verdict.NEUTRAL
    if _is(error, OSError) and raised_by_driver(error):  # TimeoutError is one, too
        return Verdict.NEUTRAL if _is(error, TimeoutError) and bound_of(error) < command_timeout else Verdict.FAILURE
    if (lost and _is(error, Exception)) or is_lost(error, lost=lost):
        return _judge_loss(paused)
    return Verdict.NEUTRAL


def _judge_loss(paused: bool) -> Verdict:
    return Verdict.NEUTRAL if paused else Verdict.FAILURE


def _judge_answer(error: BaseException, lost: bool, paused: bool) -> Verdict:
    sqlstate, severity = sqlstate_of(error), _severity_of(error)
    # asyncpg/protocol/protocol.pyx: the FATAL that ended a session is the cause of its ConnectionDoesNotExistError
    last_words = sqlstate_of(cause_of(error)) if _is(error, asyncpg.ConnectionDoesNotExistError) else None
    if sqlstate in _OURS_TO_BLAME or last_words in _OURS_TO_BLAME:
        return Verdict.NEUTRAL
    if severity in _ENDS_SESSION or (severity is None and (sqlstate in _UNWELL or (sqlstate or "")[:2] == _CONNECTION)):
        return Verdict.FAILURE
    return _judge_loss(paused) if lost else Verdict.SUCCESS


def judge_connect(error: Exception, *, renewed: bool = False) -> Verdict:
    """Decide whether `error`, with which a connect failed, counts against the database.

    `renewed`: the login was tried once more with credentials fetched anew. Then its refusal is a failure, too.

    | the connect ended with                                                                     | verdict |
    |--------------------------------------------------------------------------------------------|---------|
    | a refused login with the URL's own credentials (28xxx, or what PgBouncer says of it)       | success |
    | 3D000, 42501, 22023, 42704: a missing database or right, a wrong startup parameter         | success |
    | any other refusal, whatever its class; a network error; our bound on a connect             | failure |
    | a login that was refused twice                                                             | failure |
    | what is no answer of a PostgreSQL: the driver's IndexError, a login method that it lacks   | failure |
    | the ConnectFailedError of a provider of credentials that has none for the moment           | failure |
    | a ConfigurationError, or any other error of a provider's own code                          | neutral |
    """
    try:
        return _worst(_judge_connect(one, renewed) for one in members(error))
    except Exception:  # at the limit of the stack, say
        return Verdict.NEUTRAL


def _judge_connect(error: BaseException, renewed: bool) -> Verdict:
    if _is(error, GuardError, asyncpg.ClientConfigurationError):
        return Verdict.FAILURE if _is(error, ConnectFailedError) else Verdict.NEUTRAL
    if login_refused(error):
        return Verdict.FAILURE if renewed else Verdict.SUCCESS
    if sqlstate_of(error) in _OUR_SETTING:
        return Verdict.SUCCESS
    the_drivers = _is(error, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    return Verdict.FAILURE if the_drivers or raised_by_driver(error) else Verdict.NEUTRAL


def unfit(error: BaseException | None) -> str | None:
    """Why the session that a block ended on should perhaps not be lent again: `read_only`, or None.

    A write was refused (25006) because its transaction was read-only. Either the block asked for that, or the session
    leads to a standby, such as the former writer after a failover; then the name may lead to the new writer by now.
    The server knows which.
    """
    if error is not None and any(sqlstate_of(one) == _READ_ONLY for one in chain_of(error)):
        return "read_only"
    return None


def login_refused(error: BaseException) -> bool:
    """Whether other credentials might have done. PgBouncer says 08P01 for a wrong password, and only its text tells."""
    sqlstate = sqlstate_of(error) or ""
    return sqlstate[:2] == _LOGIN or (sqlstate == "08P01" and says(error, "authentication failed"))


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


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return min(verdicts, key=[Verdict.FAILURE, Verdict.SUCCESS, Verdict.NEUTRAL].index, default=Verdict.NEUTRAL)


def says(error: BaseException, text: str) -> bool:
    """Whether the server's message, in whatever it came, contains `text`."""
    drivers = _is(error, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    said: Any = error.args if drivers else ()
    return any(type(part) is str and text in part for part in said)


def sqlstate_of(error: BaseException | None) -> str | None:
    """The five characters that the server, or the driver in its name, gave as the reason.

    None for any other error, since what somebody else's attribute of that name holds may be anything; and None where
    they have not the form of an SQLSTATE.
    """
    if not _is(error, asyncpg.PostgresError):
        return None
    sqlstate: object = _field(error, "sqlstate")
    return sqlstate if type(sqlstate) is str and re.fullmatch(_FORM, sqlstate) else None


def _severity_of(error: BaseException) -> str | None:
    """The severity in English, where the server says it so, as PostgreSQL does since 9.6; else in its language."""
    severity: object = _field(error, "severity_en") or _field(error, "severity")
    return severity if type(severity) is str else None


def _field(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except Exception:  # of a borrower's own kind
        return None


def is_lost(error: BaseException, *, lost: bool = True) -> bool:
    """Whether `error` says that the session died under its user.

    `lost` is what the session itself says; an InterfaceError alone may also be a mistake of the caller.
    """
    if _is(error, asyncpg.ConnectionDoesNotExistError):
        return True
    if _is(error, asyncpg.InternalClientError):
        # a FATAL read between two statements leaves asyncpg's protocol out of step: "cannot switch to state …"
        return raised_by_driver(error)
    if _is(error, asyncpg.InterfaceError):
        return lost and raised_by_driver(error)
    return False


def server_spoke(error: BaseException | None) -> bool:
    """Whether the server's own last word is behind `error`: then it knows that the session is over.

    Where a session was lost without one, the server may still run a statement of it.
    """
    return error is not None and any(
        _is(one, asyncpg.PostgresError) and _severity_of(one) in _ENDS_SESSION for one in chain_of(error)
    )


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """`error`, and whatever a traceback of it would show besides: members of groups, causes and contexts, each once."""
    untold, seen = [error], {id(error)}
    for one in untold:  # grows below
        yield one
        context = None if _suppresses_context(one) else _context_of(one)
        for other in (*_members_of(one), cause_of(one) or context):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                untold.append(other)


def members(error: BaseException) -> Iterator[BaseException]:
    """`error` itself, or what a group holds, at any depth and without recursion."""
    untold = [error]
    while untold:
        one = untold.pop()
        if _is(one, BaseExceptionGroup):
            untold.extend(_members_of(one))
        else:
            yield one


# The slots of the built-in classes: an attribute of the same name on somebody's own kind of error may raise.
cause_of: Any = vars(BaseException)["__cause__"].__get__
_context_of: Any = vars(BaseException)["__context__"].__get__
_suppresses_context: Any = vars(BaseException)["__suppress_context__"].__get__
_traceback_of: Any = vars(BaseException)["__traceback__"].__get__
_exceptions_of: Any = vars(BaseExceptionGroup)["exceptions"].__get__


def _members_of(error: BaseException) -> tuple[BaseException, ...]:
    members: tuple[BaseException, ...] = _exceptions_of(error) if _is(error, BaseExceptionGroup) else ()
    return members


def _is(error: BaseException | None, *kinds: type[E]) -> TypeGuard[E]:
    """isinstance(), which would also ask the error itself: a `__class__` of its own may raise."""
    return issubclass(type(error), kinds)


def raised_by_driver(error: BaseException) -> bool:
    """Whether the innermost frame outside the standard library is asyncpg's own.

    So a TimeoutError of the borrower's HTTP call, even inside a callback that asyncpg calls, is not the driver's, and
    neither is an OSError of a file that COPY reads or writes.
    """
    innermost = ""
    for trace in _steps(error):
        package = _package(trace)
        if package not in _SEEN_THROUGH:
            innermost = package
    return innermost == "asyncpg"


def bound_of(error: BaseException) -> float:
    """Seconds of the `timeout=` that the caller gave to the statement which ended with this TimeoutError.

    Infinite where it gave none, so that COMMAND_TIMEOUT was the bound. The outermost of asyncpg's functions that has
    such an argument is the one that the caller called: to look there afterwards costs a statement in time nothing.
    """
    frames = (trace.tb_frame.f_locals for trace in _steps(error) if _package(trace) == "asyncpg")
    timeout: Any = next((names["timeout"] for names in frames if "timeout" in names), None)
    return float("inf") if timeout is None else float(timeout)


def _steps(error: BaseException) -> Iterator[TracebackType]:
    trace: TracebackType | None = _traceback_of(error)
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _package(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
