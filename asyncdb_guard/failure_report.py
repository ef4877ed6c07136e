"""Says in one line of the log why something failed: first the remedy, then the error, then the author's line. Pure.

The text of an error may contain personal data, SQL or a host, so only what this library wrote is shown.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from asyncdb_guard.errors import GuardError
from asyncdb_guard.failures import chain_of, sqlstate_of
from asyncdb_guard.redaction import describe, raised_by_us, type_name, where

_REMEDIES = {
    "23502": "a column that must not be NULL got none; pass a value, or give the column a default",
    "23503": "the row that a foreign key refers to does not exist; insert that one first",
    "23505": "the row exists already; use INSERT … ON CONFLICT DO NOTHING, so that a repeated run changes nothing",
    "25006": "the server is read-only; connect to the writer",
    "25P02": "the callback went on after an error in its transaction, which rolled back everything; let the error pass",
    "3F000": "the schema does not exist; check its name",
    "42501": "the database user lacks a privilege; GRANT it",
    "42601": "the text is not SQL, or not a kind of statement that is allowed here; write parameters as $1, $2, $3",
    "42703": "the column does not exist; check its name, and with the search_path which table is meant",
    "42725": "several operators or functions match these types; cast the parameter, as in $1::text",
    "42804": "the types do not match; cast the parameter, as in $1::text",
    "42883": "no operator or function matches these types; cast the parameter, as in $1::text",
    "42P01": "the table does not exist in the search_path; check its name, or name its schema in the statement or with"
    " schema= in the database URL",
    "42P08": "a parameter is used with two types; cast it, as in $1::text",
    "42P18": "the type of a parameter is unknown; cast it, as in $1::text",
}
"""Explanation and remedy of each SQLSTATE that a new statement or callback is likely to cause."""

_CHAIN_MAX = 12
"""Errors of one chain that are looked at: a group may hold thousands."""


@dataclass(frozen=True, slots=True)
class FailureReport:
    """Why something failed: one line, and the fields of a structured log."""

    text: str
    error: str
    """The types of the error and of its causes."""
    sqlstate: str | None
    remedy: str | None
    """What happened and what to do, as far as it is known."""
    where: str | None
    """The author's code that the error came through."""

    def fields(self) -> dict[str, Any]:
        """For `extra=` of a log call. Lambda's JSON format makes each of them a field of the record."""
        fields = asdict(self)
        del fields["text"]
        return fields


def report(error: BaseException) -> FailureReport:
    """Find out what `error` means, from it and what caused it."""
    chain = list(itertools.islice(chain_of(error), _CHAIN_MAX))
    sqlstate = next(filter(None, map(sqlstate_of, chain)), None)
    ours = [one for one in chain if isinstance(one, GuardError) and raised_by_us(one)]
    texts = [" ".join(str(one).split()) for one in ours]
    # the last is closest to the cause, unless an earlier one repeats it and says more
    told = next((text for text in texts if texts[-1] in text), None)
    silent = [one for one, text in zip(ours, texts, strict=True) if told is not None and text in told]
    known = _REMEDIES.get(sqlstate or "")
    sentences = [f"{known[0].upper()}{known[1:]}." if known else None, told]
    remedy = " ".join(filter(None, sentences)) or None
    details = describe(error, silent=silent)
    return FailureReport(
        text=f"{remedy} ({details})" if remedy else details,
        error=" < ".join(map(type_name, chain)),
        sqlstate=sqlstate,
        remedy=remedy,
        where=next(filter(None, map(where, chain)), None),
    )
