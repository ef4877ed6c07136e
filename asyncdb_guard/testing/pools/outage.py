"""`database_down(pool)`: what the code does while the database is gone."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.testing.pools.circuit import close_circuit
from asyncdb_guard.testing.pools.inside import cut_off, own_settings
from asyncdb_guard.testing.ports import LOOPBACK

_TARGET = "target"
"""The cached property of DatabaseSettings that each connect reads."""

_down: list[DatabaseSettings] = []


def is_down(settings: DatabaseSettings) -> bool:
    """Whether `database_down` is on for a pool with these settings."""
    return any(one is settings for one in _down)


@contextmanager
def database_down(pool: GuardedPool) -> Generator[None]:
    """Take the database away from one pool for a `with` block.

    The pool's sessions end as they do when a server dies, and each connect meets a closed port: the network refuses it,
    `acquire()` raises ConnectFailedError, and after BREAKER_FAIL_MAX of these CircuitOpenError. Everybody else still
    has the database. In the end the circuit is closed, too, and the next `acquire()` connects.
    """
    settings = own_settings(pool) if not is_down(pool.settings) else pool.settings
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as nobody:
        nobody.bind((LOOPBACK, 0))  # bound, and nobody listens: the kernel refuses
        before = settings.target
        vars(settings)[_TARGET] = replace(before, host=LOOPBACK, port=nobody.getsockname()[1], sslmode="disable")
        _down.append(settings)
        cut_off(pool)
        try:
            yield
        finally:
            vars(settings)[_TARGET] = before
            del _down[next(at for at, one in enumerate(_down) if one is settings)]
            close_circuit(pool)
