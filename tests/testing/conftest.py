"""A pool with a table of its own, and the same pool rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.testing import RolledBackPool, rolled_back

if TYPE_CHECKING:
    from asyncdb_guard.testing import TemporaryPostgres

TABLE = """
    CREATE TABLE {role}.parent (id integer PRIMARY KEY);
    CREATE TABLE {role}.item (
        id serial PRIMARY KEY, name text UNIQUE,
        parent integer REFERENCES {role}.parent DEFERRABLE INITIALLY DEFERRED
    );
    ALTER TABLE {role}.parent OWNER TO {role};
    ALTER TABLE {role}.item OWNER TO {role};
    INSERT INTO {role}.item (name) VALUES ('first');
"""


@pytest.fixture
async def base(server: TemporaryPostgres, role: str, url: str) -> AsyncIterator[GuardedPool]:
    """A pool, and the tables `item`, with one row, and `parent`."""
    server.psql(TABLE.format(role=role))
    async with GuardedPool(DatabaseSettings(url=url, pool_max=2)) as pool:
        yield pool


@pytest.fixture
async def pool(base: GuardedPool) -> AsyncIterator[RolledBackPool]:
    """The same, rolled back."""
    async with rolled_back(base) as pool:
        yield pool
