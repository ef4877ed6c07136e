"""The reset of a session between two borrowers: its text, and what becomes of it where a server refuses a part. Pure.

asyncpg's own reset keeps the role of SET ROLE, temporary tables, the state of sequences and the names of SQL's PREPARE,
so that the next borrower might run as an administrator. DISCARD ALL would drop the statements that asyncpg keeps, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from asyncdb_guard.events import logger
from asyncdb_guard.verdict import sqlstate_of


class Part(NamedTuple):
    """One statement of the reset."""

    sql: str
    clears: str
    """What stays for the next borrower where the server refuses it."""
    rights: bool = False
    """Whether the next borrower would have another's rights then."""


ROLLBACK = Part("ROLLBACK", "an open transaction")
AUTHORIZATION = Part("SET SESSION AUTHORIZATION DEFAULT", "the session user", rights=True)
USUAL = (
    # a condition, since each column and row of an answer costs more than this function
    Part("SELECT WHERE pg_catalog.pg_advisory_unlock_all() IS NULL", "advisory locks"),
    Part("RESET ROLE", "the role", rights=True),
    Part("CLOSE ALL", "cursors WITH HOLD"),
    Part("UNLISTEN *", "listeners"),
    Part("RESET ALL", "settings"),
    Part("DISCARD TEMP", "temporary tables"),
    Part("DISCARD SEQUENCES", "the state of sequences"),
)
NAMES = Part("SELECT FROM pg_catalog.pg_prepared_statement() WHERE from_sql", "names of PREPARE")
"""The tag of its answer counts the names of SQL's own PREPARE. It costs as much as all the others together."""

NO_NAMES = "SELECT 0"

DEALLOCATE = (
    "DO $$ DECLARE own text; BEGIN FOR own IN SELECT name FROM pg_catalog.pg_prepared_statement() WHERE from_sql LOOP"
    " EXECUTE pg_catalog.format('DEALLOCATE %I', own); END LOOP; END $$"
)

_UNKNOWN = frozenset({"0A000", "42601"})
"""feature_not_supported, syntax_error: such a server has no statement to set it either."""

_UNAVAILABLE = _UNKNOWN | {"42501", "42883"}
"""insufficient_privilege, undefined_function, too."""

_NOTHING = "SELECT 1"
"""Where a server refuses all of it: the round trip still proves that no statement runs any more."""


def lacks(error: asyncpg.PostgresError, part: Part | None = None) -> bool:
    """Whether the server does not know this part, or any, or does not let the role have it: that is so for good."""
    return sqlstate_of(error) in (_UNKNOWN if part is not None and part.rights else _UNAVAILABLE)


class ResetPlan:
    """What the server accepts of the reset, as far as known; lives as long as its pool, over all event loops."""

    __slots__ = ("_refused", "one_by_one", "usual")

    def __init__(self) -> None:
        self._refused: dict[Part, str] = {}
        self.usual = join(USUAL)
        """What is sent after most borrows, as one message."""
        self.one_by_one = False
        """Whether the server takes each part, but not all of them in one message."""

    def accepts(self, part: Part) -> bool:
        return part not in self._refused

    def parts(self, before: Iterable[Part] = (), after: Iterable[Part] = ()) -> list[Part]:
        """What the server accepts of the usual parts, and of those that are needed now and then."""
        return [part for part in (*before, *USUAL, *after) if part not in self._refused]

    def refuse(self, refused: dict[Part, asyncpg.PostgresError]) -> None:
        """Leave these parts out from now on, and say so once."""
        self._refused |= {part: sqlstate_of(error) or "no SQLSTATE" for part, error in refused.items()}
        self.usual = join(self.parts())
        logger.warning(
            "The server refuses a part of the session reset, and the pool goes on without it. The next borrower may"
            " find what the one before has left of: %s. Grant the role what it lacks (42501), or see to it that no"
            " block leaves any of these.",
            ", ".join(f"{part.clears} ({self._refused[part]})" for part in refused),
        )


def join(parts: Iterable[Part]) -> str:
    """All parts as one message."""
    return ";".join(part.sql for part in parts) or _NOTHING
