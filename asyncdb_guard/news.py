"""What environments of a fleet tell each other about an outage, and what may be believed of it. Pure: no I/O, no clock.

Three words for each database. `open`: who has opened its circuit lately. `recovery`: when, and under which name, the
first trial succeeded after an outage. `last`: when one succeeded last. All ages are seconds by the store's own clock,
so that no two clocks must agree.
"""

from typing import NamedTuple

from asyncdb_guard.clock import Instant, elapsed

LAST_LIFE = 5.0
"""Seconds after the last successful trial until a recovery is over; the next success begins another one."""

RECOVERY_LIFE = 60.0
"""Seconds for which the beginning of a recovery is kept."""

TELL_EVERY = 0.25
"""Seconds for which one successful trial speaks for all."""

WITNESSES = 3
"""Environments that must have opened their circuits, so that a new one believes it: a partition that only one sees must
not close the door for the others."""

WITNESSES_MAX = 8
"""Environments whose word is kept, the latest; with so many known, a further one need not tell."""

STRETCH_MAX = WITNESSES_MAX / 2
"""How many times longer the longest open period is in a large fleet whose store would tell of a recovery."""

_NAME_MAX = 64
"""Characters of a recovery's name."""


class News(NamedTuple):
    """What the store said."""

    at: Instant
    """When it was asked."""
    last: float | None = None
    """Seconds since a trial succeeded last; None if none did within LAST_LIFE."""
    recovery: str | None = None
    """The name of the recovery that is under way; None if there is none, or the store has lost it."""
    since: float = 0.0
    """Seconds since that began."""
    open: int = 0
    """How many environments have opened their circuits lately."""

    @property
    def stretch(self) -> float:
        """How many times longer the longest open period may be, so that somebody still tries as often as one alone.

        It rises with the number of others who try. 1, if the store keeps nobody's word.
        """
        return min(max(self.open / 2, 1.0), STRETCH_MAX)

    def succeeded_since(self, began: Instant, now: Instant) -> bool:
        """Whether a trial succeeded after an attempt that began then."""
        return self.last is not None and self.last + elapsed(self.at, now) < elapsed(began, now)

    def speaks_for_recovery(self, now: Instant) -> bool:
        """Whether another successful trial was told of so lately that this one need not be."""
        return self.last is not None and self.last + elapsed(self.at, now) < TELL_EVERY

    def speaks_for_open(self) -> bool:
        """Whether so many environments are known to have opened their circuits that another one adds nothing."""
        return self.open >= WITNESSES_MAX


def believed(at: Instant, last: float | None, recovery: object, since: float | None, witnesses: int) -> News:
    """The news, from what a store holds. Raises ValueError for what no environment can have told."""
    name = recovery if type(recovery) is str and 0 < len(recovery) <= _NAME_MAX else None
    plausible = (
        (last is None or 0 <= last <= LAST_LIFE)
        and (since is None or 0 <= since <= RECOVERY_LIFE)
        and (since is None or name is not None)
        and witnesses >= 0
    )
    if not plausible:
        raise ValueError("The fleet store holds something else than this library writes.")
    if since is None:
        return News(at, last, None, 0.0, witnesses)
    return News(at, last, name, since, witnesses)
