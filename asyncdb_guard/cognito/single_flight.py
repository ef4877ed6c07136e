"""Single flight: what many ask for at the same time is loaded once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from asyncdb_guard.cognito.cache import CacheKey

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """The loads in progress; lives as long as its `CognitoTriggers`.

    The first caller loads in its own task and under its own deadline; the others wait for what comes of it. When it
    gives up, because it is cancelled or its time is over, the next one loads in its place.
    """

    def __init__(self, gave_up: Callable[[BaseException], bool]) -> None:
        self._gave_up = gave_up
        self._single_flight: dict[CacheKey, asyncio.Future[_Landing[T] | None]] = {}

    async def share(
        self,
        key: CacheKey,
        load: Callable[[Callable[[], bool]], Awaitable[T]],
        bound: Callable[[Awaitable[_Landing[T] | None]], Awaitable[_Landing[T] | None]],
    ) -> T:
        """Return what `load` gives to everybody who asks for `key` meanwhile, or raise what it raises.

        `load` is given a function that says whether its result may still be kept: not, once it was forgotten.
        `bound` puts an end to the wait for somebody else's load.
        """
        loop = asyncio.get_running_loop()
        while (flight := self._single_flight.get(key)) is not None and flight.get_loop() is loop:
            landing = await bound(asyncio.shield(flight))  # a follower's cancellation is its own
            if landing is not None:
                return landing.result()
        flight = self._single_flight[key] = loop.create_future()
        try:
            result = await load(lambda: self._single_flight.get(key) is flight)
        except BaseException as error:
            flight.set_result(None if self._gave_up(error) else _Landing(error=error))
            raise
        else:
            flight.set_result(_Landing(result))
            return result
        finally:
            if self._single_flight.get(key) is flight:
                del self._single_flight[key]

    def forget(self, user: str) -> None:
        """Let nobody new join this user's loads; whoever waits already still gets theirs."""
        for key in [key for key in self._single_flight if key.user == user]:
            del self._single_flight[key]


class _Landing(Generic[T]):
    """How a load ended; lives until the last follower has it."""

    __slots__ = ("_error", "_results", "_trace")

    def __init__(self, *results: T, error: BaseException | None = None) -> None:
        self._results = results
        self._error = error
        self._trace = error.__traceback__ if error is not None else None

    def result(self) -> T:
        if self._error is not None:
            # from where the load failed, as a log tells that; a shared error would collect every follower's frames
            raise self._error.with_traceback(self._trace)
        return self._results[0]
