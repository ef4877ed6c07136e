"""What each failure says about the next try. Pure: no server, no clock."""

from __future__ import annotations

import errno

import asyncpg
import pytest

from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.errors import ConnectFailedError, ConnectTimeoutError, DeadlineExceededError
from asyncdb_guard.failures import FailureKind, failure_kind

ANSWERED, STARTING, FULL, SILENT = FailureKind.ANSWERED, FailureKind.STARTING, FailureKind.FULL, FailureKind.SILENT


def lost(cause: BaseException) -> BaseException:
    error = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncpg.CannotConnectNowError("the database system is starting up"), STARTING),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), FULL),
        (asyncpg.OutOfMemoryError("out of memory"), FULL),
        (TimeoutError(), SILENT),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), SILENT),
        (OSError(errno.EHOSTUNREACH, "No route to host"), SILENT),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), SILENT),
        (DeadlineExceededError("The deadline ended."), SILENT),
        (ConnectTimeoutError("It did not answer in time."), SILENT),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ANSWERED),
        (ConnectionResetError(), ANSWERED),
        (asyncpg.AdminShutdownError("57P01"), ANSWERED),
        (asyncpg.CrashShutdownError("57P02"), ANSWERED),
        (asyncpg.ConnectionFailureError("08006"), ANSWERED),
        (ConnectFailedError("The provider has no credentials."), ANSWERED),
        (None, ANSWERED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_failure_has_the_kind_that_the_table_says(error: BaseException | None, kind: FailureKind) -> None:
    assert failure_kind(error) is kind


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (TimeoutError(), SILENT),
        (asyncpg.AdminShutdownError("57P01"), ANSWERED),
        (asyncpg.CannotConnectNowError("57P03"), STARTING),
    ],
)
def test_a_lost_session_and_our_own_error_count_as_what_caused_them(cause: Exception, kind: FailureKind) -> None:
    assert failure_kind(lost(cause)) is kind
    assert failure_kind(connect_error(cause)) is kind


def test_a_group_counts_as_the_member_that_asks_for_the_longest_pause() -> None:
    refused, full = ConnectionRefusedError(), asyncpg.TooManyConnectionsError("53300")
    assert failure_kind(ExceptionGroup("two", [refused, full])) is FULL
    assert failure_kind(BaseExceptionGroup("two", [ExceptionGroup("one", [TimeoutError()]), full])) is SILENT
