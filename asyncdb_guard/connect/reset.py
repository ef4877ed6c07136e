"""The reset of a session between two borrowers: its text, and what becomes of it where a server refuses a part. Pure.

asyncpg's own reset keeps the role of SET ROLE, temporary tables, the state of sequences and the names of SQL's PREPARE,
so that the next borrower might run as an administrator. DISCARD ALL would drop the statements that asyncpg keeps, too.
"""

from __future__ import annotations

from typing import NamedTuple

import asyncpg

from asyncdb_guard.events import logger
from asyncdb_guard.verdict import sqlstate_of


class Part(NamedTuple):
    """One statement of the reset."""

    sql: str
    clears: str
    """What stays for the next borrower where the server refuses it."""


AUTHORIZATION = Part("SET SESSION AUTHORIZATION DEFAULT", "the session user")
ALWAYS = (
    Part("RESET ROLE", "the role"),
    Part("CLOSE ALL", "cursors WITH HOLD"),
    Part("UNLISTEN *", "listeners"),
    Part("RESET ALL", "settings"),
    Part("DISCARD TEMP", "temporary tables"),
    Part("DISCARD SEQUENCES", "the state of sequences"),
    # a condition, since each column and row of an answer costs more than this function
    Part("SELECT WHERE pg_catalog.pg_advisory_unlock_all() IS NULL", "advisory locks"),
)
NAMES = Part("SELECT FROM pg_catalog.pg_prepared_statement() WHERE from_sql", "names of PREPARE")
"""The tag of its answer counts the names of SQL's own PREPARE. It costs as much as all the others together."""

NO_NAMES = "SELECT 0"

DEALLOCATE = Part(
    "DO $$ DECLARE own text; BEGIN FOR own IN SELECT name FROM pg_catalog.pg_prepared_statement() WHERE from_sql LOOP"
    " EXECUTE pg_catalog.format('DEALLOCATE %I', own); END LOOP; END $$",
    NAMES.clears,
)

_FIRST, _ROLLBACK = "", "ROLLBACK;"


class ResetPlan:
    """What the server accepts of the reset, as far as that is known; lives as long as a pool on one event loop."""

    __slots__ = ("_refused", "_text", "one_by_one")

    def __init__(self) -> None:
        self._refused: dict[Part, str] = {}
        self._text = _join(ALWAYS)
        self.one_by_one = False
        """Whether the server takes each part, but not all of them in one message."""

    def accepted(self, *, authorization: bool = False, names: bool = False) -> list[Part]:
        """The parts to send, in their order: as `authorization` and `names` say, with those that are rarely needed."""
        parts = ((AUTHORIZATION,) if authorization else ()) + ALWAYS + ((NAMES,) if names else ())
        return [part for part in parts if part not in self._refused]

    def text(self, *, authorization: bool = False, names: bool = False) -> str:
        """The same as one message."""
        if not (authorization or names):
            return self._text
        return _join(self.accepted(authorization=authorization, names=names))

    def refuse(self, refused: dict[Part, asyncpg.PostgresError]) -> None:
        """Leave these parts out from now on, and say so once; with none, send the others one by one."""
        if not refused:
            self.one_by_one = True
            return
        self._refused |= {part: sqlstate_of(error) or "no SQLSTATE" for part, error in refused.items()}
        self._text = _join(self.accepted())
        logger.warning(
            "The server refuses a part of the session reset, and the pool goes on without it. The next borrower may"
            " find what the one before has left of: %s. Grant the role what it lacks (42501), or see to it that no"
            " block leaves any of these.",
            ", ".join(f"{part.clears} ({self._refused[part]})" for part in refused),
        )


def _join(parts: list[Part] | tuple[Part, ...]) -> str:
    return ";".join(part.sql for part in parts)
