"""Single flight: what several callers want at the same time is loaded once."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from asyncdb_guard.cognito.caching.key import CacheKey
from asyncdb_guard.cognito.deadline import BudgetSpentError, Deadline
from asyncdb_guard.cognito.outcome import Outcome
from asyncdb_guard.errors import DeadlineExceededError

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """The loads in progress; lives as long as its `CognitoTriggers`.

    The first caller for a key leads: it loads in its own task and under its own deadline. The others follow: they wait
    for the outcome. If the leader is cancelled or runs out of time, one of the followers leads instead.
    """

    def __init__(self) -> None:
        self._leads: dict[CacheKey, Lead[T]] = {}

    async def join(self, key: CacheKey, deadline: Deadline) -> Lead[T] | Outcome[T]:
        """Return a `Lead`, which the caller must finish, or the outcome of the load that was in progress."""
        while (lead := self._leads.get(key)) is not None and lead.is_on_running_loop():
            outcome = await deadline.bound(lead.wait())
            if outcome is not None:
                return outcome
        lead = self._leads[key] = Lead(self._leads, key)
        return lead

    def forget(self, user: str) -> None:
        """Let no new caller join this user's loads. The callers that wait already get their outcome."""
        for key in [key for key in self._leads if key.user == user]:
            del self._leads[key]


class Lead(Generic[T]):
    """The duty to load for all who wait, held by the leader; lives for that load."""

    def __init__(self, leads: dict[CacheKey, Lead[T]], key: CacheKey) -> None:
        self._leads = leads
        self._key = key
        self._outcome: asyncio.Future[Outcome[T] | None] = asyncio.get_running_loop().create_future()

    @property
    def still_wanted(self) -> bool:
        """Whether the outcome may be cached: not after the user was forgotten."""
        return self._leads.get(self._key) is self

    def finish(self, outcome: Outcome[T]) -> None:
        """Give the outcome to the followers, or let one of them lead if it says nothing about their own load."""
        self._outcome.set_result(None if _is_leaders_alone(outcome.error) else outcome)
        if self.still_wanted:
            del self._leads[self._key]

    def is_on_running_loop(self) -> bool:
        """Whether the load can be waited for here: a load left behind on another event loop never ends."""
        return self._outcome.get_loop() is asyncio.get_running_loop()

    async def wait(self) -> Outcome[T] | None:
        """Wait for the outcome, or for None if the leader gave up."""
        return await asyncio.shield(self._outcome)  # the cancellation of one follower is its own


def _is_leaders_alone(error: BaseException | None) -> bool:
    """Whether `error` is the leader's own cancellation or deadline."""
    is_cancellation = error is not None and not isinstance(error, Exception)
    return is_cancellation or isinstance(error, (BudgetSpentError, DeadlineExceededError))
