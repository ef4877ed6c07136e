"""One deadline for everything that a trigger does, and what it was waiting for when the deadline passed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asyncdb_guard.errors import DatabaseUnavailableError, DeadlineExceededError

T = TypeVar("T")

_IN_STATEMENT = (
    "The trigger's deadline passed while a statement was running. Make the statement faster, find what holds a lock"
    " that it waits for, or allow more time: the deadline is LAMBDA_DATABASE_HANDLER_BUDGET_MS, or what is left of the"
    " function's Timeout."
)
_ELSEWHERE = (
    "The trigger's deadline passed while its callback was waiting for something other than the database, such as an"
    " HTTP call. Give that a shorter timeout."
)

RESPONSE_MARGIN = 0.2
"""Seconds of the function's remaining time that are reserved for returning the answer."""

CLEANUP_TIMEOUT = 0.05
"""Seconds after the deadline for the cancelled work to end in order. Part of `RESPONSE_MARGIN`."""


class BudgetSpentError(DatabaseUnavailableError):
    """The trigger's time is over, and whether the database is to blame is unknown."""


class Deadline:
    """When one call of a trigger must end; lives for that call. Times are the event loop's own, in seconds."""

    __slots__ = ("_at", "_loop")

    def __init__(self, budget: float, context: Any = None) -> None:
        """`budget` in seconds, or the time that Lambda's `context` says is left, if that is less."""
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + min(budget, _remaining(context, budget))

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(self._at - self._loop.time(), 0.0)

    def check(self) -> None:
        """Raise BudgetSpentError if no time is left."""
        if not self.remaining:
            raise BudgetSpentError("The trigger had no time left.")

    async def bound(self, work: Awaitable[T], in_statement: Callable[[], bool] = lambda: False) -> T:
        """Await `work` until the deadline.

        Raises DeadlineExceededError if the deadline passes while `in_statement()`: the database was too slow. Raises
        BudgetSpentError if `work` was waiting for something else, such as an HTTP call of its own.
        """
        timer = asyncio.timeout_at(self._at)
        try:
            async with timer:
                return await work
        except TimeoutError:
            if not timer.expired():
                raise
        if in_statement():
            raise DeadlineExceededError(_IN_STATEMENT)
        raise BudgetSpentError(_ELSEWHERE)


def _remaining(context: Any, default: float) -> float:
    """Seconds that the Lambda context leaves. A test's context may be anything, so only a number counts."""
    get_remaining = getattr(context, "get_remaining_time_in_millis", None)
    try:
        milliseconds = get_remaining() if callable(get_remaining) else None
    except Exception:
        return default
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
        return default
    return milliseconds / 1000 - RESPONSE_MARGIN
