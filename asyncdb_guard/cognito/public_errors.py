"""What a trigger raises is shown to the person who signs in; what it was is told to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from asyncdb_guard.errors import TriggerEventError, TriggerFailedError
from asyncdb_guard.events import logger
from asyncdb_guard.redaction import describe
from asyncdb_guard.verdict import sqlstate_of

T = TypeVar("T")

_REMEDIES = {
    "23505": "such a row is there already; INSERT … ON CONFLICT DO NOTHING makes a repeated run the same as one",
    "25P02": "the callback went on after an error in its transaction, which undid all of it",
    "42501": "the database user lacks a right",
    "42601": "this is not SQL, or not a statement that can stand here; parameters are written $1, $2, $3",
    "42703": "there is no such column",
    "42725": "an operator or function could not be chosen; cast the parameter, as in $1::text",
    "42883": "there is no such operator or function for these types; cast the parameter, as in $1::text",
    "42P01": "there is no such table",
    "42P18": "the type of a parameter could not be told; cast it, as in $1::text",
}
"""What to do about an SQLSTATE that a new statement or callback is likely to meet."""


async def safely(trigger: str, public_text: str, work: Awaitable[T]) -> T:
    """Await `work`; whatever it raises goes to the log, and leaves as a TriggerFailedError with `public_text`.

    A cancellation by the caller passes. Raised outside the `except` blocks, the error has no context to leak.
    """
    failure = TriggerFailedError(public_text)
    try:
        return await work
    except TriggerEventError as error:
        _log(trigger, error)
        failure = TriggerEventError(str(error))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        _log(trigger, error)
    except Exception as error:
        _log(trigger, error)
    raise failure


def _log(trigger: str, error: BaseException) -> None:
    remedy = _REMEDIES.get(sqlstate_of(error) or "")
    logger.error("%s failed: %s%s", trigger, describe(error), f" ({remedy})" if remedy else "")
