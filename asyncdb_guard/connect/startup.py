"""The startup parameters of a direct connection, and what this process has learned about them. Pure: no I/O.

They make the server do what we cannot do while frozen, or after being killed. A server may refuse one of them, the DBA
may have set a stricter one for the role, and a pooler may swallow them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import asyncpg

from asyncdb_guard.connect.read_only import ReadOnlySessions
from asyncdb_guard.connect.reset import ResetPlan
from asyncdb_guard.events import logger
from asyncdb_guard.verdict import sqlstate_of

CLIENT_CHECK_INTERVAL = 0.25
"""Seconds after which a running statement looks for its client (client_connection_check_interval)."""

_SERVER_TIMEOUT_GRACE = 0.25
"""Seconds by which the server's idle timeout is later than ours, so that a live process ends its own sessions."""

STATEMENT_TIMEOUT_GRACE = 0.5
"""Seconds by which the server's bound on a statement is later than ours: it is for a client that is cut off."""

_PARAMETER_REFUSED = frozenset({"08P01", "0A000", "22023", "42704"})
"""What servers and poolers answer to a startup parameter: PgBouncer, RDS Proxy, PostgreSQL without POLLRDHUP (Windows,
older macOS), PostgreSQL before 14."""

_POOLERS = frozenset({"08P01", "0A000"})

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "min": 60_000.0, "h": 3_600_000.0, "d": 86_400_000.0, "": 1.0}
"""PostgreSQL's units of time, in milliseconds. A bare number of these settings is in milliseconds."""

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d|)\s*")


class ServerTraits:
    """What a process has learned of its server at its connects; lives as long as its pool, over all event loops."""

    def __init__(self, idle_timeout: float, command_timeout: float) -> None:
        """Both in seconds."""
        self._statement_timeout = round((command_timeout + STATEMENT_TIMEOUT_GRACE) * 1000)
        idle = round((idle_timeout + _SERVER_TIMEOUT_GRACE) * 1000)
        self.timeouts: dict[str, int] = {
            "idle_session_timeout": idle,
            "idle_in_transaction_session_timeout": idle,
            "client_connection_check_interval": round(CLIENT_CHECK_INTERVAL * 1000),
            "statement_timeout": self._statement_timeout,
        }
        """What to send at startup, in milliseconds."""
        self.pooler = False
        """Whether what answers is a pooler, though the settings do not say so."""
        self.dba_asked = False
        """Whether the limits that the DBA set for the role are known."""
        self.reset_plan = ResetPlan()
        self.read_only_sessions = ReadOnlySessions()

    @property
    def statement_bound(self) -> float | None:
        """Seconds after which the server ends a statement for us; None if it does not, or by the DBA's own limit."""
        ours = self.timeouts.get("statement_timeout") == self._statement_timeout
        return self._statement_timeout / 1000 if ours and not self.pooler else None

    def refuse(self, error: asyncpg.PostgresError) -> bool:
        """Go on without the parameter that the server refused; return whether it was one of ours.

        A pooler names one at a time, so all go at once then.
        """
        sqlstate, text = sqlstate_of(error), str(error)
        named = [name for name in self.timeouts if name in text]
        if sqlstate not in _PARAMETER_REFUSED or not self.timeouts or not (named or "parameter" in text):
            return False
        if sqlstate in _POOLERS or not named:
            named = list(self.timeouts)
        for name in named:
            del self.timeouts[name]
        logger.warning(
            "The server refused the startup parameter %s (SQLSTATE %s). It is left out from now on, so the server may"
            " keep sessions of a frozen or killed process: set the timeout for the role, or on the pooler.",
            " and ".join(named),
            sqlstate,
        )
        return True

    def found_pooler(self) -> None:
        """Turn the pooler profile on for this process."""
        self.pooler = True
        logger.warning(
            "The database is behind a transaction pooler, which LAMBDA_DATABASE_PROXY_PROFILE does not say; the pooler"
            " profile is on from now. Set LAMBDA_DATABASE_PROXY_PROFILE=true, or pgbouncer=true in the database URL."
        )

    def respect(self, role_settings: Iterable[str]) -> bool:
        """Take over what the DBA set more strictly (`name=value`); return whether that changes a parameter."""
        self.dba_asked = True
        stricter = False
        for setting in role_settings:
            name, _, value = setting.partition("=")
            limit = _milliseconds(value)
            if name in self.timeouts and limit and limit < self.timeouts[name]:
                self.timeouts[name] = limit
                stricter = True
        return stricter

    def parameters(self) -> Mapping[str, str]:
        """Our startup parameters, as text."""
        return {name: str(value) for name, value in self.timeouts.items()}


def _milliseconds(value: str) -> int:
    match = _TIME.fullmatch(value)
    return round(float(match[1]) * _UNITS[match[2]]) if match is not None else 0
