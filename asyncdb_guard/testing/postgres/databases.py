"""A database of one's own for each process of a test run: a copy of the run's template, on the run's one server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import asyncpg

from asyncdb_guard.testing.loop_thread import run_blocking
from asyncdb_guard.testing.postgres.installation import Account, shared_directory
from asyncdb_guard.testing.postgres.server import TemporaryPostgres, join
from asyncdb_guard.testing.postgres.sessions import OBSERVER

ENVIRONMENT = "ASYNCDB_GUARD_POSTGRES_URL"
"""The variable with the URL of a server where databases may be created."""

OPTION = "--postgres-url"
"""The plugin's option for the same."""

PREFIX = "asyncdb_guard_"
_DAY = 86_400
_URL = "url"


class PostgresUrlError(RuntimeError):
    """The server that a URL names for tests cannot be used. Says why, and what to do."""


class TemporaryDatabase:
    """A database that exists from `start()` until `close()`; made of the same template in all processes of a run."""

    def __init__(self, server: _Server, name: str) -> None:
        self.url = _with_database(server.url, name)
        """Its URL."""
        self._server = server
        self._name = name

    @classmethod
    def start(
        cls,
        schema: str = "",
        *,
        url: str | None = None,
        version: int | None = None,
        run: str | None = None,
        process: str = "main",
    ) -> Self:
        """Create a database, and before the first of a run its template.

        `schema`: the SQL statements that make the template. `url`: of a server where databases may be created, by
        default what ASYNCDB_GUARD_POSTGRES_URL says, else a throw-away server is started. `version`: the server's major
        version, such as 16; by default any. `run`: what the processes of one run have in common, they share server and
        template; by default this is a run of its own. `process`: differs between them.

        Raises PostgresNotFoundError where there is no server to be had, PostgresUrlError where the one of the URL
        cannot be used, and what the server says to `schema`.
        """
        run = run or uuid.uuid4().hex
        given = url or os.environ.get(ENVIRONMENT)
        server = _Server(given, None, None, OPTION if url else ENVIRONMENT) if given else _server_of(run, version)
        try:
            name = run_blocking(_create(server, run, process, schema, version))
        except BaseException:
            server.leave()
            raise
        return cls(server, name)

    def close(self) -> None:
        """Drop it; after the last database of a run its template goes, too, or the throw-away server."""
        if self._server.is_foreign:
            run_blocking(_drop(self._server, self._name))
        self._server.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class _Server:
    """The server of a run: somebody's own, or a throw-away one that lives as long as a process of the run."""

    url: str
    started: TemporaryPostgres | None
    joined: int | None
    named: str = ""
    """What has the URL of somebody's own."""

    @property
    def is_foreign(self) -> bool:
        return self.started is None and self.joined is None

    def leave(self) -> None:
        if self.started is not None:
            self.started.leave()
        elif self.joined is not None:
            os.close(self.joined)


def _server_of(run: str, version: int | None) -> _Server:
    """Join the run's server, or start it."""
    account = Account.current()
    with shared_directory(account, "servers") as shared:
        directory = shared / f"run-{_digest(run)}"
        with contextlib.suppress(OSError):
            joined = join(directory)
            return _Server((directory / _URL).read_text(encoding="utf-8"), None, joined)
        server = TemporaryPostgres.start(version, directory=directory)
        (directory / _URL).write_text(server.url(), encoding="utf-8")
        return _Server(server.url(), server, None)


async def _create(server: _Server, run: str, process: str, schema: str, version: int | None) -> str:
    """Create the database of one process, and return its name."""
    digest = _digest(run)
    template = f"{PREFIX}{digest}_template"
    name = f"{PREFIX}{digest}_{int(time.time()):x}_{_digest(process)}"
    async with _administrator(server, digest) as admin:
        if server.is_foreign:
            found = admin.get_server_version().major
            if version not in {None, found}:
                raise PostgresUrlError(
                    f"The server of {server.named} is PostgreSQL {found}, and --postgres-version asks for {version}."
                    " Remove one of the two."
                )
            await _sweep(admin)
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", template):
            await _create_template(admin, server, template, schema)
        await _create_database(admin, server, f'"{name}" TEMPLATE "{template}"')
    return name


async def _create_database(admin: Any, server: _Server, what: str) -> None:
    """CREATE DATABASE. Raises PostgresUrlError where the role may not."""
    try:
        await admin.execute(f"CREATE DATABASE {what}")
    except asyncpg.InsufficientPrivilegeError:
        problem = PostgresUrlError(
            f"The role in {server.named} may not create databases, and each process of a run gets one of its own. Use"
            " ALTER ROLE … CREATEDB, or another role; without a URL, a throw-away server is started."
        )
    else:
        return
    raise problem  # outside of the except block, so that it has no context


async def _create_template(admin: Any, server: _Server, template: str, schema: str) -> None:
    """Under another name until it is complete: a template that failed half way must not be copied."""
    draft = f"{template}_draft"
    await admin.execute(f'DROP DATABASE IF EXISTS "{draft}"')
    await _create_database(admin, server, f'"{draft}"')
    if schema:
        url = _with_database(server.url, draft)
        connection = await asyncpg.connect(url, server_settings={"application_name": OBSERVER}, timeout=10.0)
        try:
            await connection.execute(schema)
        finally:
            await connection.close(timeout=5.0)
    await admin.execute(f'ALTER DATABASE "{draft}" RENAME TO "{template}"')


async def _drop(server: _Server, name: str) -> None:
    digest = name.removeprefix(PREFIX).partition("_")[0]
    async with _administrator(server, digest) as admin:
        await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        rest = await admin.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", f"{PREFIX}{digest}_")
        names = [record["datname"] for record in rest]
        if not any(_born(one) is not None for one in names):
            for one in names:
                await admin.execute(f'DROP DATABASE IF EXISTS "{one}" WITH (FORCE)')


async def _sweep(admin: Any) -> None:
    """Drop what a killed run has left on somebody's own server, a day later."""
    rows = await admin.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", PREFIX)
    for name in (record["datname"] for record in rows):
        born = _born(name)
        if born is not None and born < time.time() - _DAY:
            template = f"{PREFIX}{name.removeprefix(PREFIX).partition('_')[0]}_template"
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):  # another role's
                for one in (name, template, f"{template}_draft"):
                    await admin.execute(f'DROP DATABASE IF EXISTS "{one}" WITH (FORCE)')


def _born(name: str) -> int | None:
    """When the database of a process was created, in seconds since 1970; None for a template."""
    words = name.removeprefix(PREFIX).split("_")
    with contextlib.suppress(ValueError, IndexError):
        return int(words[1], 16) if len(words) == 3 else None
    return None


@contextlib.asynccontextmanager
async def _administrator(server: _Server, digest: str) -> AsyncGenerator[Any]:
    """A connection that has the run's databases to itself. Raises PostgresUrlError."""
    problem = connection = None
    try:
        connection = await asyncpg.connect(server.url, server_settings={"application_name": OBSERVER}, timeout=10.0)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if not server.is_foreign:
            raise
        problem = _why_not(error)
    if connection is None:  # outside of the except block: the error's context would have the URL in its frames
        raise PostgresUrlError(
            f"The server of {server.named} cannot be used for tests: {problem}, or remove the URL to get a throw-away"
            " server."
        )
    try:
        await connection.execute(f"SELECT pg_advisory_lock({int(digest, 16) >> 1})")
        yield connection
    finally:
        await connection.close(timeout=5.0)


def _why_not(error: Exception) -> str:
    """Why a connect to somebody's own server failed, and the remedy."""
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():  # the class 28, a wrong password included
            return f"it refused the login ({error.sqlstate}). Correct user and password"
        case asyncpg.InvalidCatalogNameError():
            return "it does not have the database of the URL. Name one that exists, such as postgres"
        case asyncpg.PostgresError():
            return f"it refused the connection ({error.sqlstate}). See the server's log"
        case OSError():  # a timeout, too
            return f"it does not answer ({type(error).__name__}). Start it, or correct host and port"
        case _:
            return "the URL is not one of PostgreSQL. Write postgresql://user:password@host:port/database"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_database(url: str, name: str) -> str:
    parts = urlsplit(url)
    # urlunsplit() leaves the slashes out where there is no host, as with a Unix socket
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}/{quote(name, safe='')}{query}"
