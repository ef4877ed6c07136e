"""Cancels a coroutine at a chosen one of its suspension points."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

Moment = Literal["while it waits", "with the answer"]
"""The awaited future is cancelled; or the cancellation comes after its result, before anybody has seen that."""


async def cancelled_at(point: int, moment: Moment, work: Coroutine[Any, Any, Any]) -> bool:
    """Run `work` in the current task and cancel the task at the suspension with this number, from 1.

    Returns False once `work` ends with fewer suspensions than that.
    """
    return await _drive(point, moment, work)


@types.coroutine
def _drive(point: int, moment: Moment, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, bool]:
    task = asyncio.current_task()
    assert task is not None
    suspensions = 0
    thrown: BaseException | None = None
    while True:
        try:
            awaited = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration:
            return suspensions >= point
        suspensions += 1
        if suspensions == point:
            if moment == "while it waits" or awaited is None:
                task.cancel()
            else:
                awaited.add_done_callback(lambda _: task.cancel())
        try:
            yield awaited
            thrown = None
        except BaseException as error:
            thrown = error
