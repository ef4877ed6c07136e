"""Time that stays right across a freeze. Decisions never read a clock: they take an instant as an argument."""

from __future__ import annotations

import time
from typing import TypeAlias

Instant: TypeAlias = tuple[float, float]
"""Seconds on the monotonic clock and seconds on the wall clock, read together."""


def now() -> Instant:
    return time.monotonic(), time.time()


def elapsed(since: Instant, until: Instant) -> float:
    """Return the seconds between two instants, never below zero.

    The larger of the two clocks' answers: the monotonic clock stops while a micro-VM is frozen (CLOCK_MONOTONIC
    excludes suspension), and the wall clock can be set back.
    """
    monotonic, wall = until[0] - since[0], until[1] - since[1]
    longer = max(wall, monotonic)  # max() takes longer, and this is asked in each borrow
    return max(0.0, longer)
