"""The SQL of the pages, run on the real server in transactions that are rolled back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.conftest import TABLES
from tests.support.pages import BLOCKS, Block, taken

if TYPE_CHECKING:
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

STATEMENTS = [block for block in BLOCKS if block.language == "sql" and not block.not_run]
taken.update(STATEMENTS)

ROLES = "CREATE ROLE rds_iam;"
"""What RDS has."""


def statements(block: Block) -> list[str]:
    """One by one. A claims statement has no semicolon at its end: an empty line or a comment is between two."""
    text = re.sub(r"(?m) *--.*$", "", block.text)
    return [one.strip() for part in text.split(";") for one in part.split("\n\n") if one.strip()]


@pytest.mark.parametrize("block", STATEMENTS, ids=str)
async def test_the_server_takes_it(block: Block, server: Cluster, role: str) -> None:
    connection = await server.connect()
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"SET search_path = {role}; {TABLES} {ROLES}")
        for name in ("app", "app_login"):
            if f"CREATE ROLE {name} " not in block.text:
                await connection.execute(f"CREATE ROLE {name}")
        for statement in statements(block):
            if "$1" in statement:
                await connection.prepare(statement)
            else:
                await connection.execute(statement)
        await transaction.rollback()
    finally:
        await connection.close()
