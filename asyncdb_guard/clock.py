"""Time that survives a freeze. A decision never reads a clock: it is given an instant."""

from __future__ import annotations

import time
from typing import TypeAlias

Instant: TypeAlias = tuple[float, float]
"""Seconds of the monotonic clock, and seconds of the wall clock, read together."""


def now() -> Instant:
    return time.monotonic(), time.time()


def elapsed(since: Instant, until: Instant) -> float:
    """Seconds between two instants, never below zero.

    The larger of both clocks: the monotonic one stands still while a micro-VM is frozen
    (CLOCK_MONOTONIC excludes suspension), the wall clock may be set back.
    """
    return max(until[0] - since[0], until[1] - since[1], 0.0)
