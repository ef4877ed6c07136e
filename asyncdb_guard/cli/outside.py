"""What can be seen of a fleet from outside: its sessions on the server, and its words in the fleet store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import asyncpg

from asyncdb_guard.bulletin import open_bulletin
from asyncdb_guard.bulletin.board import Bulletin, fault_of
from asyncdb_guard.cli.server_facts import read_facts
from asyncdb_guard.connect.connector import Connector
from asyncdb_guard.connect.credentials import credentials_for
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.errors import GuardError
from asyncdb_guard.failures import sqlstate_of
from asyncdb_guard.fleet.budget import ServerFacts
from asyncdb_guard.news import WITNESSES_MAX, News
from asyncdb_guard.settings import DatabaseSettings

_ANSWER_TIMEOUT = 2.0
"""Seconds for each answer of the server, and of the fleet store."""

HIDDEN = "hidden"
"""The state of a session of a role whose sessions the watcher may count, but not see."""

_SESSIONS = """
    SELECT pid, coalesce(state, $3) AS state, coalesce(application_name, '') AS application
    FROM pg_stat_activity
    WHERE usesysid = (SELECT oid FROM pg_roles WHERE rolname = coalesce($1, session_user))
      AND pid <> pg_backend_pid() AND coalesce(backend_type, 'client backend') = 'client backend'
      AND ($2::text IS NULL OR application_name = $2)
"""
_NO_ROLE = "--role names no role of this server. Check its spelling."


@dataclass(frozen=True)
class Sessions:
    """The fleet's sessions at one moment."""

    facts: ServerFacts
    states: dict[str, int]
    """State -> sessions: `active`, `idle`, `idle in transaction` and so on."""
    applications: dict[str, int]
    """`application_name` -> sessions."""
    opened: int
    """Sessions that were not there at the look before."""
    closed: int
    """Sessions that were there at the look before, and are not any more."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())


@dataclass(frozen=True)
class Seen:
    """One look."""

    at: float
    """Seconds since the epoch."""
    sessions: Sessions | None
    """None if the server is unavailable."""
    database_fault: str | None
    """Why it is, with the remedy."""
    news: News | None
    """None without a store, or if that is unavailable."""
    store_fault: str | None
    has_store: bool

    @property
    def circuit(self) -> str:
        """What is known of the circuits: one word or a few."""
        if not self.has_store:
            return "unknown (no fleet store)"
        if self.news is None:
            return "unknown (fleet store unavailable)"
        if self.news.open:
            return f"open in {'at least ' if self.news.open >= WITNESSES_MAX else ''}{self.news.open}"
        return "closed again" if self.news.recovery is not None else "closed"

    @property
    def good(self) -> bool:
        """Whether nothing is wrong: the server answers, and nobody says that a circuit is open."""
        return self.sessions is not None and self.store_fault is None and not (self.news is not None and self.news.open)


@dataclass
class Watcher:
    """Looks again and again, through one session of its own; use it as `async with`.

    It reads the fleet store and never writes to it: a watcher is no witness of an outage. It has no circuit breaker, so
    that it sees a server's return at once; that is one attempt for each look.
    """

    settings: DatabaseSettings
    role: str | None = None
    """The fleet's role, unless the watcher logs in as that."""
    application: str | None = None
    """Sessions with this application_name only."""
    _connection: Any = field(default=None, init=False)
    _pids: frozenset[int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        self._bulletin: Bulletin | None = open_bulletin(self.settings)
        traits = ServerTraits(self.settings.idle_timeout, self.settings.command_timeout)
        self._connector = Connector(self.settings, credentials_for(self.settings, None), traits, ())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hang_up()
        if self._bulletin is not None:
            self._bulletin.close()

    async def look(self) -> Seen:
        """Ask the server and the store at the same time. Raises GuardError if the role does not exist."""
        (sessions, database_fault), (news, store_fault) = await asyncio.gather(self._ask_server(), self._ask_store())
        return Seen(time.time(), sessions, database_fault, news, store_fault, self._bulletin is not None)

    async def _ask_server(self) -> tuple[Sessions | None, str | None]:
        try:
            if self._connection is None:
                self._connection = await self._connector.log_in().result(self.settings.connect_timeout)
        except Exception as error:  # whatever a driver, a resolver or a provider of credentials raises
            self._pids = frozenset()
            return None, self._explain_login(error)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                facts = await read_facts(self._connection, self.role)
                rows = await self._connection.fetch(_SESSIONS, self.role, self.application, HIDDEN)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            await self._hang_up()
            self._pids = frozenset()
            told = sqlstate_of(error) or type(error).__name__
            return None, f"The session ended, or a question was refused ({told}). Look at the server's log."
        if facts is None:
            raise GuardError(_NO_ROLE)
        pids = frozenset(row["pid"] for row in rows)
        before = pids if self._pids is None else self._pids
        self._pids = pids
        states = _counted(row["state"] for row in rows)
        applications = _counted(row["application"] for row in rows)
        return Sessions(facts, states, applications, len(pids - before), len(before - pids)), None

    def _explain_login(self, error: Exception) -> str:
        if isinstance(error, GuardError):
            return str(error)
        renewed, passwordless = self._connector.renews_login, self._connector.passwordless
        return str(connect_error(error, renewed=renewed, passwordless=passwordless))

    async def _ask_store(self) -> tuple[News | None, str | None]:
        if self._bulletin is None:
            return None, None
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await self._bulletin.probe(), None
        except Exception as error:
            return None, fault_of(error)

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                await connection.close(timeout=0.5)


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
