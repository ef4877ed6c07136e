"""The reset of a session between two borrowers: its SQL, and how it goes on if a server refuses a part. Pure: no I/O.

asyncpg's own reset keeps the role of SET ROLE, temporary tables, the state of sequences and the names of SQL's PREPARE,
so that the next borrower might run as an administrator. DISCARD ALL would also drop the statements that asyncpg caches.
"""

from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from asyncdb_guard.events import logger
from asyncdb_guard.failures import sqlstate_of


class Part(NamedTuple):
    """One statement of the reset."""

    sql: str
    clears: str
    """What the next borrower may find if the server refuses it."""
    rights: bool = False
    """Whether the next borrower would then have another role's privileges."""


ROLLBACK = Part("ROLLBACK", "an open transaction")
AUTHORIZATION = Part("SET SESSION AUTHORIZATION DEFAULT", "the session user", rights=True)
USUAL = (
    # a condition, as each column and row of an answer costs more than this function
    Part("SELECT WHERE pg_catalog.pg_advisory_unlock_all() IS NULL", "advisory locks"),
    Part("RESET ROLE", "the role", rights=True),
    Part("CLOSE ALL", "cursors WITH HOLD"),
    Part("UNLISTEN *", "listeners"),
    Part("RESET ALL", "settings"),
    Part("DISCARD TEMP", "temporary tables"),
    Part("DISCARD SEQUENCES", "the state of sequences"),
)
_UNLOCK = "asyncdb_guard_unlock"
"""Our own name in each session for the first of these: to parse and plan it costs as much as all the others do."""

_FROM_SQL = f"FROM pg_catalog.pg_prepared_statement() WHERE from_sql AND name OPERATOR(pg_catalog.<>) '{_UNLOCK}'"

NAMES = Part(f"SELECT {_FROM_SQL}", "names of PREPARE")
"""The command tag of its answer counts the names of SQL's own PREPARE. It costs as much as all the other parts."""

NO_NAMES = "SELECT 0"

DEALLOCATE = (
    f"DO $$ DECLARE own text; BEGIN FOR own IN SELECT name {_FROM_SQL} LOOP"
    " EXECUTE pg_catalog.format('DEALLOCATE %I', own); END LOOP; END $$"
)

_UNKNOWN = frozenset({"0A000", "42601"})
"""feature_not_supported, syntax_error: such a server has no statement that sets it, either."""

_UNAVAILABLE = _UNKNOWN | {"42501", "42883"}
"""The same, and insufficient_privilege, undefined_function."""

_NOTHING = "SELECT 1"
"""Sent if a server refuses every part: the round trip still proves that no statement is running."""


def lacks(error: asyncpg.PostgresError, part: Part | None = None) -> bool:
    """Whether the server does not know this part, or does not allow it for the role. A retry would not help."""
    return sqlstate_of(error) in (_UNKNOWN if part is not None and part.rights else _UNAVAILABLE)


class ResetPlan:
    """The parts of the reset that the server is known to accept; lives as long as its pool, over all event loops."""

    __slots__ = ("_refused", "first", "one_by_one", "usual")

    def __init__(self) -> None:
        self._refused: dict[Part, str] = {}
        unlock, *others = USUAL
        self.first = f"{join(USUAL)};PREPARE {_UNLOCK} AS {unlock.sql}"
        """The message that is sent after the first borrow of a session."""
        self.usual = f"EXECUTE {_UNLOCK};{join(others)}"
        """The message that is sent after most borrows."""
        self.one_by_one = False
        """Whether the server accepts each part, but not all of them in one message."""

    def accepts(self, part: Part) -> bool:
        return part not in self._refused

    def parts(self, before: Iterable[Part] = (), after: Iterable[Part] = ()) -> list[Part]:
        """Return the accepted parts: the usual ones, and the given ones before and after them."""
        return [part for part in (*before, *USUAL, *after) if part not in self._refused]

    def refuse(self, refused: dict[Part, asyncpg.PostgresError]) -> None:
        """Do not send these parts any more, and log a warning."""
        self._refused |= {part: sqlstate_of(error) or "no SQLSTATE" for part, error in refused.items()}
        self.first = self.usual = join(self.parts())
        logger.warning(
            "The server refuses a part of the session reset, which is no longer sent. A borrower may find what the"
            " previous one left behind: %s. Grant the role the missing privilege (42501), or make sure that no block"
            " leaves these behind.",
            ", ".join(f"{part.clears} ({self._refused[part]})" for part in refused),
        )


def join(parts: Iterable[Part]) -> str:
    """All parts as one message."""
    return ";".join(part.sql for part in parts) or _NOTHING


def identifier(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL writes it, whatever standard_conforming_strings is."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
