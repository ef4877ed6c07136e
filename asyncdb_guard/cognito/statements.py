"""Callbacks that are one SQL statement: `$1` is the sub, `$2` the e-mail or NULL, `$3` the attributes as jsonb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from asyncdb_guard.cognito.event import CognitoUser
from asyncdb_guard.cognito.placeholders import Scan, StatementError, scan
from asyncdb_guard.cognito.values import ClaimError
from asyncdb_guard.errors import ConfigurationError

_AS_JSON = "SELECT row_to_json(asyncdb_guard_row.*)::text FROM (\n{}\n) AS asyncdb_guard_row LIMIT 2"
_PARAMETERS = {1: "${}", 2: "${}", 3: "(${}::jsonb)"}


class Statement:
    """One statement, ready to run; lives as long as its `CognitoTriggers`."""

    def __init__(self, sql: str, name: str) -> None:
        """`name` is the source of the statement, for errors. Raises ConfigurationError if it is invalid."""
        self.name = name
        scanned = _scan(sql, name)
        self._numbers = sorted({parameter.number for parameter in scanned.parameters})
        for number in self._numbers:
            if number not in _PARAMETERS:
                raise ConfigurationError(
                    f"{name} uses ${number}. Use only $1 (the sub), $2 (the e-mail) and $3 (the attributes as jsonb)."
                )
        # PostgreSQL must determine a type for every parameter up to the highest, so the used ones are renumbered.
        text, position = "", 0
        for parameter in scanned.parameters:
            place = self._numbers.index(parameter.number) + 1
            text += scanned.text[position : parameter.start] + _PARAMETERS[parameter.number].format(place)
            position = parameter.end
        self.text = text + scanned.text[position:]

    def arguments(self, user: CognitoUser) -> list[str | None]:
        """The arguments of the statement for this user."""
        return [_argument(number, user) for number in self._numbers]


class ProvisionStatement(Statement):
    """Writes a user's row."""

    async def __call__(self, conn: Any, user: CognitoUser) -> None:
        await conn.execute(self.text, *self.arguments(user))


class ClaimsStatement(Statement):
    """Reads a user's claims: the columns of a single row. No row means no claims, and a NULL is left out.

    PostgreSQL itself converts the row to JSON. So a JSON column becomes an object, and the driver never has to look
    up a type, which for enums and composite types would pin a connection of RDS Proxy.
    """

    async def __call__(self, conn: Any, user: CognitoUser) -> Mapping[str, object] | None:
        rows = await conn.fetch(_AS_JSON.format(self.text), *self.arguments(user))
        if not rows:
            return None
        if len(rows) > 1:
            raise ClaimError(f"{self.name} returned more than one row for one user. Select the user by $1, the sub.")
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


def _scan(sql: str, name: str) -> Scan:
    try:
        return scan(sql)
    except StatementError as error:
        reason = str(error)
    raise ConfigurationError(f"{name} {reason}. It must be exactly one SQL statement.")


def _argument(number: int, user: CognitoUser) -> str | None:
    if number == 1:
        return user.sub
    return user.email if number == 2 else json.dumps(dict(user.attributes))
