"""Who is told how long each borrow waited and lasted. Nobody by default, and then a borrow costs no time for it."""

from __future__ import annotations

from typing import Protocol

from asyncdb_guard.events import logger


class BorrowObserver(Protocol):
    """Plain methods, called in the borrower's task: they must be quick. Durations are in seconds."""

    def acquired(self, seconds: float) -> None:
        """A caller got a connection after `seconds`."""
        ...

    def failed(self, seconds: float, error: BaseException) -> None:
        """A caller got `error` instead, after `seconds`."""
        ...

    def released(self, seconds: float) -> None:
        """A borrower returned a connection that it had for `seconds`."""
        ...


class Observers:
    """Tells each observer; lives as long as its pool. One that raises is logged, and harms nothing."""

    __slots__ = ("present",)

    def __init__(self) -> None:
        self.present: tuple[BorrowObserver, ...] = ()
        """All of them: a borrow looks here first, and does no more if there is none."""

    def add(self, observer: BorrowObserver) -> None:
        """Tell `observer`, too, from now on."""
        self.present += (observer,)

    def remove(self, observer: BorrowObserver) -> None:
        """Stop telling `observer`. One that was not added is no error."""
        self.present = tuple(one for one in self.present if one is not observer)

    def acquired(self, seconds: float) -> None:
        self._tell("acquired", seconds)

    def failed(self, seconds: float, error: BaseException) -> None:
        self._tell("failed", seconds, error)

    def released(self, seconds: float) -> None:
        self._tell("released", seconds)

    def _tell(self, what: str, *facts: object) -> None:
        for observer in self.present:
            try:
                getattr(observer, what)(*facts)
            except Exception as error:
                # the type alone: the text of an observer's error may contain anything
                logger.error("An observer of borrows failed with %s.", type(error).__name__)
