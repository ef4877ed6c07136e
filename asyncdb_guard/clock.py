"""Time that stays right across a freeze. Decisions never read a clock: they take an instant as an argument."""

from __future__ import annotations

import time
from typing import TypeAlias

Instant: TypeAlias = tuple[float, float]
"""Seconds on the monotonic clock and seconds on the wall clock, read together."""

LONG_AGO: Instant = (float("-inf"), float("-inf"))
NEVER: Instant = (float("inf"), float("inf"))


def now() -> Instant:
    return time.monotonic(), time.time()


def elapsed(since: Instant, until: Instant) -> float:
    """Return the seconds between two instants, never below zero.

    The larger of the two clocks' answers: the monotonic clock stops while a micro-VM is frozen (CLOCK_MONOTONIC
    excludes suspension), and the wall clock can be set back.
    """
    monotonic, wall = until[0] - since[0], until[1] - since[1]
    # each borrow asks this, and a call of max() would take longer
    longer = wall if wall > monotonic else monotonic  # noqa: FURB136
    return longer if longer > 0.0 else 0.0  # noqa: FURB136


def after(since: Instant, seconds: float) -> Instant:
    """Return the instant so many seconds after `since`."""
    return since[0] + seconds, since[1] + seconds


def has_come(instant: Instant, now: Instant) -> bool:
    """Whether an instant has come, by either clock."""
    return now[0] >= instant[0] or now[1] >= instant[1]
