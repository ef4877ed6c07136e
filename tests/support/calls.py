"""Calls through a pool whose circuit may be open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncdb_guard import CircuitOpenError

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool


async def served(pool: GuardedPool, *, refusal: type[Exception] = CircuitOpenError) -> bool:
    """Whether a call gets through; False for `refusal`, and any other error is raised."""
    try:
        await pool.ping()
    except refusal:
        return False
    return True
