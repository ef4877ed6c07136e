"""Replaces what a trigger raises: the end user sees a fixed text, and the cause goes to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from asyncdb_guard.errors import TriggerEventError, TriggerFailedError
from asyncdb_guard.events import logger
from asyncdb_guard.lambda_environment import function_name
from asyncdb_guard.redaction import describe
from asyncdb_guard.verdict import sqlstate_of

T = TypeVar("T")

_REMEDIES = {
    "23505": "the row exists already; use INSERT … ON CONFLICT DO NOTHING, so that a repeated run changes nothing",
    "25P02": "the callback went on after an error in its transaction, which rolled back everything; let the error pass",
    "42501": "the database user lacks a privilege; GRANT it",
    "42601": "the text is not SQL, or not a kind of statement that is allowed here; write parameters as $1, $2, $3",
    "42703": "the column does not exist; check its name",
    "42725": "several operators or functions match these types; cast the parameter, as in $1::text",
    "42883": "no operator or function matches these types; cast the parameter, as in $1::text",
    "42P01": "the table does not exist; check its name and the search_path",
    "42P18": "the type of a parameter is unknown; cast it, as in $1::text",
}
"""Explanation and remedy of each SQLSTATE that a new statement or callback is likely to cause."""


async def run_with_public_errors(trigger: str, public_text: str, work: Awaitable[T]) -> T:
    """Await `work`. Log whatever it raises, and raise a TriggerFailedError with `public_text` instead.

    The caller's own cancellation passes through. The error is raised outside the `except` blocks, so that it has no
    `__context__` that could leak. Outside Lambda, what was raised is its `__cause__`.
    """
    failure = TriggerFailedError(public_text)
    cause: BaseException
    try:
        return await work
    except TriggerEventError as error:
        failure, cause = TriggerEventError(str(error)), error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        cause = error
    except Exception as error:
        cause = error
    _log(trigger, cause)
    if function_name() is None:
        failure.__cause__ = cause
    raise failure


def _log(trigger: str, error: BaseException) -> None:
    remedy = _REMEDIES.get(sqlstate_of(error) or "")
    logger.error("%s failed: %s%s", trigger, describe(error), f" ({remedy})" if remedy else "")
