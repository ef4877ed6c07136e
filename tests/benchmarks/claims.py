"""A claims load, from Cognito's event to the answer, beside the bare statement that it has to run."""

from __future__ import annotations

from typing import Any

import asyncpg

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from tests.benchmarks.contestants import COMMAND_TIMEOUT, Borrower
from tests.benchmarks.figures import Figure, compare
from tests.benchmarks.warm import take_turns
from tests.cognito.events import token_event

LOAD = "Claims load, from event to answer"
STATEMENT = "SELECT role, tenant_id FROM app_user WHERE cognito_sub = $1"
_SUB = "3f1c2a52-7d0e-4a55-9a0e-0c5ad1b0f6aa"
_SCHEMA = f"""
    CREATE TABLE app_user (cognito_sub text PRIMARY KEY, role text NOT NULL, tenant_id int NOT NULL);
    INSERT INTO app_user VALUES ('{_SUB}', 'editor', 7);
"""


async def _claims(connection: asyncpg.Connection, user: CognitoUser) -> dict[str, object]:
    row = await connection.fetchrow(STATEMENT, user.sub)
    return dict(row) if row else {}


async def loads(server: Cluster, *, rounds: int, batch: int) -> list[Figure]:
    server.psql(_SCHEMA)
    url, event = server.url(), token_event(sub=_SUB)
    bare = await asyncpg.connect(url, ssl="disable", command_timeout=COMMAND_TIMEOUT)
    options: dict[str, Any] = {
        "url": url,
        "session_reset": "never",
        "command_timeout_ms": round(COMMAND_TIMEOUT * 1000),
    }
    uncached = DatabaseSettings(**options, claims_cache_ttl_ms=0)
    async with GuardedPool(uncached) as pool, GuardedPool(DatabaseSettings(**options)) as caching:
        asked, kept = CognitoTriggers(pool, claims=_claims), CognitoTriggers(caching, claims=_claims)
        samples = await take_turns(
            {
                "asyncpg connection, the statement": Borrower(lambda: bare.fetchrow(STATEMENT, _SUB)),
                "load_claims, from the database": Borrower(lambda: asked.load_claims(event)),
                "load_claims, from the cache": Borrower(lambda: kept.load_claims(event)),
            },
            rounds,
            batch,
        )
    await bare.close()
    return compare(LOAD, {name: [sample * 1e6 for sample in own] for name, own in samples.items()}, "µs")
