"""Asks a new connection whether it is really a direct one.

A transaction pooler may accept our startup parameters and drop them. Its clients share backends, where a named
statement of ours may be another client's, and then rows are read wrongly. A pooler gives itself away in two ways: it
invents the process number that it sends as BackendKeyData, and our parameters are not in force.

The answer is the number of rows, which comes with the command tag: a simple query needs no prepared statement.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from asyncdb_guard.connect.node import READ_ONLY, STANDBY, NodeState, reported_state

POOLER, STRICTER = 1, 2

_OF_THE_ROLE = """
FROM pg_catalog.pg_db_role_setting, unnest(setconfig) AS setting
WHERE setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
AND setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
AND split_part(setting, '=', 1) = ANY ('{{{names}}}')
"""


async def probe(connection: asyncpg.Connection, sent: Mapping[str, str], timeout: float, *, dba: bool) -> int:
    """Return POOLER, STRICTER or 0. `dba`: whether to look for stricter limits that the DBA set for the role.

    `timeout` in seconds, here and below: a connect has its own bound, whatever that of a borrower's statement is.
    """
    moved = [f"pg_catalog.pg_backend_pid() <> {connection.get_server_pid()}"]
    moved += [f"current_setting('{name}', true)::interval <> '{value} ms'" for name, value in sent.items()]
    flags = f"({' OR '.join(moved)})::int"
    if dba and sent:
        flags += f" + 2 * (EXISTS (SELECT {_OF_THE_ROLE.format(names=','.join(sent))}))::int"
    tag = await connection.execute(f"SELECT FROM generate_series(1, {flags})", timeout=timeout)
    answer = int(tag.rpartition(" ")[2])
    return POOLER if answer & POOLER else answer


async def role_settings(connection: asyncpg.Connection, sent: Mapping[str, str], timeout: float) -> list[str]:
    """Return the DBA's settings for this role, in this database or in all, as `name=value`. Direct connections only."""
    rows = await connection.fetch(f"SELECT setting {_OF_THE_ROLE.format(names=','.join(sent))}", timeout=timeout)
    return [row[0] for row in rows]


async def node_state(connection: asyncpg.Connection, timeout: float) -> NodeState:
    """Return what kind of node a new connection is on; one round trip to a server that does not report it."""
    reported = reported_state(connection.get_settings())
    if reported is not None:
        return reported
    flags = (
        f"{STANDBY} * pg_catalog.pg_is_in_recovery()::int"
        f" + {READ_ONLY} * (current_setting('default_transaction_read_only') = 'on')::int"
    )
    tag = await connection.execute(f"SELECT FROM generate_series(1, {flags})", timeout=timeout)
    answer = int(tag.rpartition(" ")[2])
    return NodeState(bool(answer & STANDBY), bool(answer & READ_ONLY))
