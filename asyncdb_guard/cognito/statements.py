"""Callbacks that are one SQL statement, with the user or machine as its parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Generic, TypeVar

from asyncdb_guard.cognito.event import CognitoClient, CognitoUser
from asyncdb_guard.cognito.locking import ISOLATION, lock
from asyncdb_guard.cognito.placeholders import Scan, StatementError, scan
from asyncdb_guard.cognito.values import ClaimError
from asyncdb_guard.errors import ConfigurationError, GuardError
from asyncdb_guard.failures import sqlstate_of

S = TypeVar("S", CognitoUser, CognitoClient)

_OF_USERS = {1: "${}", 2: "${}", 3: "(${}::jsonb)"}
_OF_MACHINES = {1: "${}", 2: "(${}::text[])"}
# At the top level, where PostgreSQL also allows an INSERT … RETURNING, and not as a subquery.
_AS_JSON = (
    "{}asyncdb_guard_row AS (\n{}\n) SELECT row_to_json(asyncdb_guard_row.*)::text FROM asyncdb_guard_row LIMIT 2"
)


_SYNTAX_OR_ACCESS = "42"
"""The class of SQLSTATEs for what is wrong with the text of a statement: names, types, syntax, privileges."""

_MESSAGE_MAX = 300
"""Characters of the server's message that are told."""


class StatementRefusedError(GuardError):
    """PostgreSQL refused the text of a statement from a setting. Shows the server's message, which has no value in it:
    the text is fixed, and values are passed apart from it.
    """


def refusal(error: Exception, callback: object) -> Exception:
    """`error`, or a StatementRefusedError that names the statement `callback` and what the server said of it."""
    sqlstate = sqlstate_of(error) or ""
    if not isinstance(callback, Statement) or sqlstate[:2] != _SYNTAX_OR_ACCESS:
        return error
    said = "".join(one if one.isprintable() else " " for one in str(error.args[0])[:_MESSAGE_MAX])
    refused = StatementRefusedError(f"PostgreSQL refused {callback.name}: {said}")
    refused.__cause__ = error
    return refused


class Statement(Generic[S]):
    """One statement, ready to run; lives as long as its `CognitoTriggers`."""

    parameters: ClassVar[Mapping[int, str]] = _OF_USERS
    """How each parameter is written."""
    allowed: ClassVar[str] = "$1 (the sub), $2 (the e-mail) and $3 (the attributes as jsonb)"

    def __init__(self, sql: str, name: str) -> None:
        """`name` is the source of the statement, for errors. Raises ConfigurationError if it is invalid."""
        self.name = name
        scanned = _scan(sql, name)
        self._numbers = sorted({parameter.number for parameter in scanned.parameters})
        for number in self._numbers:
            if number not in self.parameters:
                raise ConfigurationError(f"{name} uses ${number}. Use only {self.allowed}.")
        clause, main = self._written(scanned, 0, scanned.main), self._written(scanned, scanned.main)
        self.text = self._complete(clause, main)
        self._scan = scanned

    def _complete(self, clause: str, main: str) -> str:
        """The text to run, from the WITH clause, which may be empty, and the statement after it."""
        return clause + main

    def _written(self, scanned: Scan, start: int, end: int | None = None) -> str:
        """A part of the statement with its parameters renumbered.

        PostgreSQL must determine a type for every parameter up to the highest, so only the used ones are numbered.
        """
        text, position, end = "", start, len(scanned.text) if end is None else end
        for parameter in scanned.parameters:
            if start <= parameter.start < end:
                place = self._numbers.index(parameter.number) + 1
                text += scanned.text[position : parameter.start] + self.parameters[parameter.number].format(place)
                position = parameter.end
        return text + scanned.text[position:end]

    def arguments(self, subject: S) -> list[object]:
        """The arguments of the statement for this user or machine."""
        return [self._argument(number, subject) for number in self._numbers]

    def _argument(self, number: int, subject: Any) -> object:
        if number == 1:
            return subject.sub
        return subject.email if number == 2 else json.dumps(dict(subject.attributes))


class ProvisionStatement(Statement[CognitoUser]):
    """Writes a user's row."""

    async def __call__(self, conn: Any, user: CognitoUser) -> None:
        await conn.execute(self.text, *self.arguments(user))


class ClaimsStatement(Statement[S]):
    """Reads claims: the columns of a single row. No row means no claims, and a NULL is left out.

    It may also write the row that it returns, such as that of a user who signs in for the first time. Then it runs in a
    transaction, under the lock of that user.

    PostgreSQL itself converts the row to JSON. So a JSON column becomes an object, and the driver never has to look
    up a type, which for enums and composite types would pin a connection of RDS Proxy.
    """

    def __init__(self, sql: str, name: str) -> None:
        super().__init__(sql, name)
        if self._scan.main_writes and not self._scan.returns:
            raise ConfigurationError(f"{name} writes a row and returns none. Add RETURNING and the claims' columns.")

    async def __call__(self, conn: Any, subject: S) -> Mapping[str, object] | None:
        if not self._scan.writes:
            return await self._load(conn, subject)
        async with conn.transaction(isolation=ISOLATION):
            await lock(conn, subject)
            return await self._load(conn, subject)

    def _complete(self, clause: str, main: str) -> str:
        return _AS_JSON.format(f"{clause}, " if clause.strip() else "WITH ", main)

    async def _load(self, conn: Any, subject: S) -> Mapping[str, object] | None:
        rows = await conn.fetch(self.text, *self.arguments(subject))
        if not rows:
            return None
        if len(rows) > 1:
            raise ClaimError(f"{self.name} returned more than one row. Select one by $1.")
        return self._claims(rows[0][0])

    def _claims(self, text: str) -> Mapping[str, object]:
        columns: list[tuple[str, object]] = []

        def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
            columns[:] = pairs  # the outermost object, the row, comes last
            return dict(pairs)

        claims: dict[str, object] = json.loads(text, object_pairs_hook=collect, parse_float=Decimal)
        if len(claims) < len(columns):
            raise ClaimError(f"{self.name} returned two columns of the same name. Rename one with AS.")
        if "?column?" in claims:
            raise ClaimError(f"{self.name} returned a column without a name. Name it with AS.")
        return claims


class UserClaims(ClaimsStatement[CognitoUser]):
    """Loads a user's claims."""


class MachineClaims(ClaimsStatement[CognitoClient]):
    """Loads a machine's claims: `$1` is the client ID, `$2` the scopes."""

    parameters = _OF_MACHINES
    allowed = "$1 (the client ID) and $2 (the scopes as text[])"

    def _argument(self, number: int, subject: Any) -> object:
        return subject.client_id if number == 1 else list(subject.scopes)


def _scan(sql: str, name: str) -> Scan:
    try:
        return scan(sql)
    except StatementError as error:
        reason = str(error)
    raise ConfigurationError(f"{name} {reason}. It must be exactly one SQL statement.")
