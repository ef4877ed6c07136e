"""A result that is passed on before anybody asks for it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Outcome(Generic[T]):
    """How some work ended: with a value, or with an error to raise later. Several callers may share it."""

    __slots__ = ("_traceback", "_value", "error")

    def __init__(self, value: T | None = None, *, error: BaseException | None = None) -> None:
        self._value = value
        self.error = error
        self._traceback = None if error is None else error.__traceback__

    def get(self) -> T:
        """Return the value, or raise the error with the traceback of the work alone.

        Otherwise a shared error would collect the frames of every caller, and the log would show the wrong place.
        """
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)
        return cast("T", self._value)


async def capture(work: Awaitable[T]) -> Outcome[T]:
    """Await `work` and return its outcome. Raises nothing, not even a cancellation or a SystemExit."""
    try:
        return Outcome(await work)
    except BaseException as error:
        return Outcome(error=error)
