"""The startup parameters of a direct connection, and what this process has learned about them. Pure: no I/O.

They make the server do what a frozen or killed process cannot. A server may refuse one of them, the DBA may have set a
stricter one for the role, and a pooler may drop them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import asyncpg

from asyncdb_guard.connect.read_only import ReadOnlySessions
from asyncdb_guard.connect.reset import ResetPlan
from asyncdb_guard.events import logger
from asyncdb_guard.failures import sqlstate_of
from asyncdb_guard.settings.server_settings import milliseconds

CLIENT_CHECK_INTERVAL = 0.25
"""Seconds between the server's checks, during a statement, that the client is there
(client_connection_check_interval)."""

_SERVER_TIMEOUT_GRACE = 0.25
"""Seconds by which the server's idle timeout exceeds ours, so that a live process closes its own sessions."""

STATEMENT_TIMEOUT_GRACE = 0.5
"""Seconds by which the server's bound on a statement exceeds ours: it is for clients that were cut off."""

_PARAMETER_REFUSED = frozenset({"08P01", "0A000", "22023", "42704"})
"""How servers and poolers refuse a startup parameter: PgBouncer, RDS Proxy, PostgreSQL without POLLRDHUP (Windows,
older macOS), PostgreSQL before 14. Others use codes of their own, and name the parameter."""

_OF_THE_LOGIN = frozenset({"28", "3D"})
"""Classes of SQLSTATE: the user, the password or the database, whose name the text contains."""

_POOLERS = frozenset({"08P01", "0A000"})


class ServerTraits:
    """What the process has learned about its server from connects; lives as long as its pool, over all event loops."""

    def __init__(
        self, idle_timeout: float, command_timeout: float, server_settings: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Both timeouts are in seconds; `server_settings` are the user's own names and values."""
        self._statement_timeout = round((command_timeout + STATEMENT_TIMEOUT_GRACE) * 1000)
        self._idle_timeout = idle = round((idle_timeout + _SERVER_TIMEOUT_GRACE) * 1000)
        self.timeouts: dict[str, int] = {
            "idle_session_timeout": idle,
            "idle_in_transaction_session_timeout": idle,
            "client_connection_check_interval": round(CLIENT_CHECK_INTERVAL * 1000),
            "statement_timeout": self._statement_timeout,
        }
        """The timeouts to send at startup, in milliseconds."""
        self.pooler = False
        """Whether a connect has met a pooler that the settings do not mention."""
        self.dba_asked = False
        """Whether the DBA's limits for the role have been read."""
        self._own = dict(server_settings)
        self._tighten(self._own.items())
        self.reset_plan = ResetPlan()
        self.read_only_sessions = ReadOnlySessions()

    @property
    def sets_idle_timeout(self) -> bool:
        """Whether sessions have our own idle_session_timeout: not if the server refuses it, or the DBA's applies."""
        return self.timeouts.get("idle_session_timeout") == self._idle_timeout

    @property
    def statement_bound(self) -> float | None:
        """Seconds after which the server ends a statement; None if it does not, or if the DBA's own limit applies."""
        ours = self.timeouts.get("statement_timeout") == self._statement_timeout
        return self._statement_timeout / 1000 if ours and not self.pooler else None

    def refuse(self, error: asyncpg.PostgresError) -> bool:
        """Stop sending the parameter that the server refused; return whether it was one of ours.

        A pooler names only one of them at a time, so then all are dropped.
        """
        sqlstate, text = sqlstate_of(error), str(error)
        named = [name for name in self.timeouts if name in text]
        if any(f'"{name}"' in text.lower() for name in self._own.keys() - self.timeouts.keys()):
            return False
        if sqlstate is not None and sqlstate[:2] in _OF_THE_LOGIN:
            return False
        # whatever else names one of ours refuses it, in any words and with any code
        if not named and not (self.timeouts and sqlstate in _PARAMETER_REFUSED and "parameter" in text):
            return False
        if sqlstate in _POOLERS or not named:
            named = list(self.timeouts)
        for name in named:
            del self.timeouts[name]
        logger.warning(
            "The server refused the startup parameter %s (SQLSTATE %s), which is no longer sent. It may keep the"
            " sessions of frozen or killed processes: set the timeout for the role, or on the pooler.",
            " and ".join(named),
            sqlstate,
        )
        return True

    def found_pooler(self) -> None:
        """Turn the pooler profile on for this pool."""
        self.pooler = True
        logger.warning(
            "The database is behind a transaction pooler that the settings do not mention. The pooler profile is now"
            " on. Set LAMBDA_DATABASE_PROXY_PROFILE=true, or pgbouncer=true in the database URL."
        )

    def respect(self, role_settings: Iterable[str]) -> bool:
        """Adopt the DBA's settings (`name=value`) where they are stricter; return whether that changes a parameter."""
        self.dba_asked = True
        return self._tighten((name, value) for name, _, value in (one.partition("=") for one in role_settings))

    def _tighten(self, settings: Iterable[tuple[str, str]]) -> bool:
        stricter = False
        for name, value in settings:
            limit = milliseconds(value)
            if name in self.timeouts and limit and limit < self.timeouts[name]:
                self.timeouts[name] = limit
                stricter = True
        return stricter

    def parameters(self) -> Mapping[str, str]:
        """Return our startup parameters as text."""
        return {name: str(value) for name, value in self.timeouts.items()}

    def own_parameters(self) -> Mapping[str, str]:
        """Return the user's own, but for what ours take into account."""
        return {name: value for name, value in self._own.items() if name not in self.timeouts}
