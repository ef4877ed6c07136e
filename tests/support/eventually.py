"""Waiting for something outside to become true, with a deadline in place of a sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class Eventually(Protocol):
    """The type of `eventually`, for tests that ask for the fixture."""

    async def __call__(
        self, look: Callable[[], T | Awaitable[T]], *, within: float = ..., every: float = ..., but: str = ...
    ) -> T: ...


async def eventually(
    look: Callable[[], T | Awaitable[T]], *, within: float = 5.0, every: float = 0.01, but: str = ""
) -> T:
    """Look again and again until what is seen is true (not falsy); return it.

    `within` and `every` are seconds. `but` says in the failure what was expected. An AssertionError from `look`
    counts as not yet.
    """
    deadline = time.monotonic() + within
    while True:
        failure: AssertionError | None = None
        seen: T | None = None
        try:
            found = look()
            seen = await found if inspect.isawaitable(found) else found
        except AssertionError as error:
            failure = error
        else:
            if seen:
                return seen
        if time.monotonic() >= deadline:
            expected = but or inspect.getsource(look).strip()
            raise AssertionError(f"Not within {within:g} s: {expected}\nLast seen: {failure or seen!r}")
        await asyncio.sleep(every)
