"""Replaces what a trigger raises: the end user sees a fixed text, and the cause goes to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from asyncdb_guard.errors import TriggerEventError, TriggerFailedError
from asyncdb_guard.events import logger
from asyncdb_guard.failure_report import report
from asyncdb_guard.lambda_environment import function_name

T = TypeVar("T")


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
    failure = report(error)
    logger.error("%s failed: %s", trigger, failure.text, extra=failure.fields())
