"""What `doctor` looks at: the way to the database step by step, and then the database itself.

Each step needs the one before; the first that is bad ends the way.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from asyncdb_guard.bulletin import open_bulletin
from asyncdb_guard.bulletin.board import fault_of
from asyncdb_guard.cli import findings
from asyncdb_guard.cli.findings import Finding, Grade, PoolerKind
from asyncdb_guard.cli.server_facts import read_facts
from asyncdb_guard.cognito.caching.redis import redis_endpoint
from asyncdb_guard.cognito.statements import MachineClaims, ProvisionStatement, Statement, UserClaims, refusal
from asyncdb_guard.connect.aws.boto import off_loop
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.credentials import credentials_for
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.connect.node import suits
from asyncdb_guard.connect.redis import RedisClient
from asyncdb_guard.connect.server_detection import node_state
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.connect.tls import TlsContexts
from asyncdb_guard.errors import ConfigurationError, GuardError
from asyncdb_guard.failures import sqlstate_of
from asyncdb_guard.fleet import OpenPeriods
from asyncdb_guard.fleet.budget import Budget, Demand, ServerFacts
from asyncdb_guard.settings import ConnectTarget, DatabaseSettings
from asyncdb_guard.settings.pooler_profile import DIRECT
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import is_socket

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""protocol-message-formats: SSLRequest."""
_STEP_TIMEOUT = 5.0
"""Seconds for each thing that is asked."""
_ROUND_TRIPS = 5
_POOLER_TRIES = 4
_HELD_TIMEOUT = 1.0
"""Seconds after which a statement counts as waiting for the backend that another connection holds."""


@dataclass(frozen=True)
class Plan:
    """What is known of the fleet, and of the server's size."""

    environments: int | None = None
    processes: int = 1
    capacity: float | None = None
    """Logins a second."""


async def examine(settings: DatabaseSettings, plan: Plan) -> AsyncIterator[Finding]:
    """Look at everything that the settings lead to, and yield what is found, in order."""
    async for finding in _way(settings, plan):
        yield finding
    if settings.claims_cache_url is not None:
        yield await _cache(settings)
    if settings.fleet_url is not None:
        yield await _fleet_store(settings)


async def _way(settings: DatabaseSettings, plan: Plan) -> AsyncIterator[Finding]:
    try:
        credentials = credentials_for(settings, None)
        target = await asyncio.wait_for(credentials.complete(settings.target), settings.connect_timeout)
    except (GuardError, TimeoutError) as error:
        yield Finding("login", Grade.BAD, str(error) or "The provider of the credentials did not answer in time.")
        return
    async for finding in _network(target, settings.connect_timeout):
        yield finding
        if finding.grade is Grade.BAD:
            return
    traits = ServerTraits(settings.idle_timeout, settings.command_timeout)
    connector = Connector(settings, credentials, traits, ())
    connections: list[Any] = []
    try:
        try:
            began = time.perf_counter()
            connections.append(await connector.log_in().result(settings.connect_timeout))
        except Exception as error:
            passwordless, renewed = connector.passwordless, connector.renews_login
            refused = connect_error(error, renewed=renewed, passwordless=passwordless)
            yield Finding("login", Grade.BAD, str(error if isinstance(error, GuardError) else refused))
            return
        yield Finding("login", Grade.GOOD, f"{(time.perf_counter() - began) * 1000:.0f} ms")
        async for finding in _database(settings, plan, connector, connections):
            yield finding
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        told = sqlstate_of(error) or type(error).__name__
        text = f"The session ended, or a question was refused ({told}). Look at the server's log and try again."
        yield Finding("session", Grade.BAD, text)
    finally:
        for connection in connections:
            with suppress(Exception):
                await connection.close(timeout=1.0)


async def _network(target: ConnectTarget, timeout: float) -> AsyncIterator[Finding]:
    if is_socket(target.host):
        yield Finding("tcp", Grade.GOOD, "a Unix socket: no name, no TCP and no TLS")
        return
    loop = asyncio.get_running_loop()
    name = "name"
    try:
        async with asyncio.timeout(timeout):
            addresses = await loop.getaddrinfo(target.host, target.port, type=1)
        yield Finding("name", Grade.GOOD, f"{len({one[4][0] for one in addresses})} address(es)")
        name = "tcp"
        began = time.perf_counter()
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            yield Finding("tcp", Grade.GOOD, f"{(time.perf_counter() - began) * 1000:.1f} ms")
            name = "tls"
            async with asyncio.timeout(timeout):
                yield await _tls(target, reader, writer)
        finally:
            writer.transport.abort()
    except ConfigurationError as error:
        yield Finding(name, Grade.BAD, str(error))
    except (OSError, EOFError) as error:
        cause = error if isinstance(error, OSError) else asyncpg.InterfaceError("no answer to SSLRequest")
        yield Finding(name, Grade.BAD, str(connect_error(cause)))


async def _tls(target: ConnectTarget, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Finding:
    context = TlsContexts().context(target)
    if not isinstance(context, ssl.SSLContext):
        return Finding("tls", Grade.GOOD, "none: SSLMODE is disable, which is the default on loopback")
    writer.write(_SSL_REQUEST)
    answer = await reader.readexactly(1)
    if answer == b"N":
        raise ConnectionError("the server declines SSL")
    if answer != b"S":
        raise EOFError
    await writer.start_tls(context, server_hostname=target.host)
    shown: dict[str, Any] = writer.get_extra_info("peercert") or {}
    if not shown:
        text = f"encrypted, but nobody verifies who the server is. Set {label('sslmode')} to verify-full."
        return Finding("tls", Grade.DOUBTFUL, text)
    issuer = {key: value for part in shown["issuer"] for key, value in part}
    days = (ssl.cert_time_to_seconds(shown["notAfter"]) - time.time()) / 86_400
    return findings.certificate(issuer.get("commonName") or issuer.get("organizationName") or "an unnamed CA", days)


async def _database(
    settings: DatabaseSettings, plan: Plan, connector: Connector, connections: list[Any]
) -> AsyncIterator[Finding]:
    connection = connections[0]
    # what the login told: an old server may not understand the questions
    version = findings.version(connection.get_server_version().major)
    yield version
    if version.grade is Grade.BAD:
        return
    kind = await _pooler_kind(settings, connector, connections)
    yield findings.pooler(kind, profile=settings.profile is not DIRECT)
    state = await node_state(connection, settings.connect_timeout)
    wanted = settings.target.target_session_attrs
    if wanted == "any" or not suits(wanted, state):
        yield findings.node(standby=state.standby, read_only=state.read_only)
    facts = await read_facts(connection)
    assert facts is not None
    yield findings.role(facts)
    for finding in _fleet(settings, plan, facts, direct=kind is PoolerKind.NONE):
        yield finding
    if kind is PoolerKind.NONE and settings.profile is DIRECT:
        yield await _timeouts(settings, connection)
    yield await _round_trip(connection)
    for name, statement in _statements(settings):
        if kind is PoolerKind.NONE:
            yield await _prepared(name, statement, connection)
        else:
            yield Finding(name, Grade.GOOD, "not prepared, as behind a pooler that would be another client's, too")


def _fleet(settings: DatabaseSettings, plan: Plan, facts: ServerFacts, *, direct: bool) -> Iterator[Finding]:
    yours = OpenPeriods(settings.breaker_reset_timeout, settings.breaker_reset_timeout_max)
    if plan.environments is not None:
        demand = Demand({"": plan.environments}, plan.processes, settings.pool_max)
        if direct:
            yield findings.fits(Budget(facts, demand, facts.others_at_most))
        yield findings.periods(yours, demand, "--concurrency", plan.capacity)
    elif direct:
        sessions, source = facts.ceiling
        pools = max(sessions // settings.pool_max, 1)
        yield findings.periods(yours, Demand({"": pools}), f"at most, by {source}", plan.capacity)
    else:
        yield findings.periods_behind_pooler()


async def _pooler_kind(settings: DatabaseSettings, connector: Connector, connections: list[Any]) -> PoolerKind:
    """Prove it: a pooler invents the process number that it tells, and in transaction mode the backend changes."""
    connection = connections[0]
    backend = await _backend(connection)
    if backend == connection.get_server_pid():
        return PoolerKind.NONE
    other = await connector.log_in().result(settings.connect_timeout)
    connections.append(other)
    for _ in range(_POOLER_TRIES):
        try:
            await other.execute("BEGIN", timeout=_HELD_TIMEOUT)
        except TimeoutError:
            return PoolerKind.SESSION  # there is one backend, which the first one keeps without using it
        try:
            if await _backend(connection, timeout=_HELD_TIMEOUT) != backend:
                return PoolerKind.TRANSACTION
        except TimeoutError:
            return PoolerKind.TRANSACTION  # there is one backend, and the other one's transaction has it
        finally:
            await other.execute("ROLLBACK")
    return PoolerKind.SESSION


async def _backend(connection: Any, timeout: float = _STEP_TIMEOUT) -> int:
    """The process number of the server's process that answers. As a count of rows, which needs no statement's name."""
    tag = await connection.execute("SELECT FROM generate_series(1, pg_catalog.pg_backend_pid())", timeout=timeout)
    return int(tag.rpartition(" ")[2])


async def _timeouts(settings: DatabaseSettings, connection: Any) -> Finding:
    wanted = dict(ServerTraits(settings.idle_timeout, settings.command_timeout).parameters())
    in_force: dict[str, str | None] = {}
    for name in wanted:
        in_force[name] = await connection.fetchval(
            "SELECT (extract(epoch FROM current_setting($1, true)::interval) * 1000)::bigint::text", name
        )
    return findings.timeouts(wanted, in_force)


async def _round_trip(connection: Any) -> Finding:
    times: list[float] = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        await connection.execute("SELECT 1")
        times.append(time.perf_counter() - began)
    return Finding("round trip", Grade.GOOD, f"{statistics.median(times) * 1000:.2f} ms (median of {_ROUND_TRIPS})")


def _statements(settings: DatabaseSettings) -> list[tuple[str, Statement[Any] | ConfigurationError]]:
    kinds: dict[str, type[Statement[Any]]] = {
        "claims_sql": UserClaims, "machine_claims_sql": MachineClaims, "provision_sql": ProvisionStatement,
    }  # fmt: skip
    made: list[tuple[str, Statement[Any] | ConfigurationError]] = []
    for name, kind in kinds.items():
        sql = getattr(settings, name)
        if sql is not None:
            try:
                made.append((name, kind(sql, label(name))))
            except ConfigurationError as error:
                made.append((name, error))
    return made


async def _prepared(name: str, statement: Statement[Any] | ConfigurationError, connection: Any) -> Finding:
    if isinstance(statement, ConfigurationError):
        return Finding(name, Grade.BAD, str(statement))
    try:
        prepared = await connection.prepare(statement.text, timeout=_STEP_TIMEOUT)
    except asyncpg.PostgresError as error:
        refused = refusal(error, statement)
        told = str(refused) if isinstance(refused, GuardError) else f"{label(name)} is refused by PostgreSQL."
        return Finding(name, Grade.BAD, f"{told}. Correct the statement, or create what it names.")
    types = ", ".join(parameter.name for parameter in prepared.get_parameters()) or "none"
    columns = ", ".join(f"{one.name} {one.type.name}" for one in prepared.get_attributes()) or "none"
    return Finding(name, Grade.GOOD, f"prepared; parameters: {types}; columns: {columns}")


async def _cache(settings: DatabaseSettings) -> Finding:
    began = time.perf_counter()
    try:
        await asyncio.wrap_future(
            off_loop(lambda: RedisClient(redis_endpoint(settings)).run(lambda client: client.ping()))
        )
    except GuardError as error:
        return Finding("claims cache", Grade.DOUBTFUL, str(error))
    milliseconds = (time.perf_counter() - began) * 1000
    return Finding("claims cache", Grade.GOOD, f"reached in {milliseconds:.1f} ms, connect and one ping")


async def _fleet_store(settings: DatabaseSettings) -> Finding:
    try:
        bulletin = open_bulletin(settings)
    except ConfigurationError as error:
        return Finding("fleet store", Grade.BAD, str(error))
    assert bulletin is not None
    began = time.perf_counter()
    try:
        await bulletin.probe()
    except Exception as error:
        return Finding("fleet store", Grade.DOUBTFUL, fault_of(error))
    finally:
        bulletin.close()
    milliseconds = (time.perf_counter() - began) * 1000
    return Finding("fleet store", Grade.GOOD, f"reached in {milliseconds:.1f} ms, connect and one look")
