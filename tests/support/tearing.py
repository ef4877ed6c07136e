"""What tests of torn steps share: an exception out of nowhere, and whether the pool still serves."""

from __future__ import annotations

import contextlib

from asyncdb_guard import GuardedPool, GuardError


class Alarm(Exception):
    """As a signal handler raises it, at any bytecode."""


async def serves(pool: GuardedPool) -> bool:
    """Whether the pool serves the next caller; where the stack tore more than a lease, it finds that at a timeout."""
    with contextlib.suppress(GuardError):
        return bool(await pool.fetchval("SELECT 1") == 1)
    return False
