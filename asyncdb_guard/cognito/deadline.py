"""One deadline for all that a trigger does, and who had the turn when it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from asyncdb_guard.errors import DatabaseUnavailableError, DeadlineExceededError

T = TypeVar("T")

MARGIN = 0.2
"""Seconds of the function's remaining time that are left for the answer's way back."""

GRACE = 0.05
"""Seconds after the deadline for what it broke off to end in order: a part of MARGIN, as the cache's last word is."""


class BudgetSpentError(DatabaseUnavailableError):
    """The trigger's time is over, and whether that is the database's fault is not known, or not known yet."""


class Deadline:
    """When one call of a trigger must be over; lives for that call. Times are the event loop's own, in seconds."""

    __slots__ = ("_at", "_loop")

    def __init__(self, budget: float, context: Any = None) -> None:
        """`budget` in seconds, or what Lambda's `context` leaves of the function's time, if that is less."""
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + min(budget, _remaining(context, budget))

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(self._at - self._loop.time(), 0.0)

    def check(self) -> None:
        """Raise BudgetSpentError if no time is left."""
        if not self.remaining:
            raise BudgetSpentError("No time was left.")

    async def bound(self, work: Awaitable[T], in_statement: Callable[[], bool] = lambda: False) -> T:
        """Await `work`, until the deadline at most.

        Raises DeadlineExceededError if it ended `in_statement`: that is the database's share. Raises BudgetSpentError
        if `work` was waiting for something else, such as an HTTP call of its own.
        """
        timer = asyncio.timeout_at(self._at)
        try:
            async with timer:
                return await work
        except TimeoutError:
            if not timer.expired():
                raise
        if in_statement():
            raise DeadlineExceededError("The trigger's time ended while a statement was running.")
        raise BudgetSpentError("The trigger's time ended while its callback waited for something else.")


def _remaining(context: Any, otherwise: float) -> float:
    """Seconds that the Lambda context leaves. A test's context may be anything, so only a number counts."""
    tell = getattr(context, "get_remaining_time_in_millis", None)
    try:
        told = tell() if callable(tell) else None
    except Exception:
        return otherwise
    if isinstance(told, bool) or not isinstance(told, (int, float)):
        return otherwise
    return told / 1000 - MARGIN
