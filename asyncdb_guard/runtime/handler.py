"""A coroutine function becomes the plain function that Lambda calls, and whatever escapes it becomes one safe error."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec, TypeVar, cast, overload

from asyncdb_guard.errors import TriggerFailedError
from asyncdb_guard.events import logger
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.redaction import describe
from asyncdb_guard.runtime.process import process

P = ParamSpec("P")
R = TypeVar("R")

_SAFE_TEXT = "The request could not be completed"
"""What the caller reads in place of an error's own text. Cognito adds a period."""

_ABSENT: Any = object()


@overload
def lambda_handler(
    handler: Callable[P, Coroutine[Any, Any, R]],
    /,
    *,
    prewarm: GuardedPool | Iterable[GuardedPool] | None = None,
    expose: type[Exception] | tuple[type[Exception], ...] = (),
) -> Callable[P, R]: ...


@overload
def lambda_handler(
    *,
    prewarm: GuardedPool | Iterable[GuardedPool] | None = None,
    expose: type[Exception] | tuple[type[Exception], ...] = (),
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, R]]: ...


def lambda_handler(
    handler: Callable[P, Coroutine[Any, Any, R]] = _ABSENT,
    /,
    *,
    prewarm: GuardedPool | Iterable[GuardedPool] | None = None,
    expose: type[Exception] | tuple[type[Exception], ...] = (),
) -> Callable[P, R] | Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, R]]:
    """Make `async def handler(event, context)` a plain function for the Lambda runtime. Also a decorator.

    All handlers of a process share one event loop, made at the first call and kept for life, so that their pools
    stay warm. Every call gets its own copy of the caller's context variables. Tasks that the handler leaves behind
    are left alone. Sync decorators, such as Powertools', go around this one, not inside.

    `prewarm`: the pools that open a session while Lambda initialises the environment; default none. Only in Lambda,
    and not under SnapStart. A failure there is counted by the pool's breaker and logged, and nothing else.

    `expose`: error types of the handler's that whoever invoked the function may see as they are; default none.

    Raises TriggerFailedError for everything else that escapes the handler, CancelledError and SystemExit too: with
    fixed text, while the error's type and place go to the log. A TriggerFailedError of the handler's passes as it is.
    Raises RuntimeError if called where an event loop is running, and TypeError, already here, if `handler` is no
    coroutine function that takes an event and a context.

    In Lambda, SIGTERM ends the pools' sessions, calls the handler that the signal had before, and exits. Where
    `snapshot_restore_py` is installed, the sessions also end before a SnapStart snapshot.
    """
    if handler is _ABSENT:
        return functools.partial(lambda_handler, prewarm=prewarm, expose=expose)
    _check(handler)
    pools = (prewarm,) if isinstance(prewarm, GuardedPool) else tuple(prewarm or ())
    process.prepare()
    if process.initialising:
        _prewarm(pools)

    @functools.wraps(handler)
    def invoke(*args: P.args, **kwargs: P.kwargs) -> R:
        result, error = process.run(handler, *args, **kwargs)
        if error is None and _can_be_sent(result):
            return cast(R, result)
        if error is None:
            logger.error("The answer of the handler %s has a text that UTF-8 can't carry.", _name(handler))
            raise TriggerFailedError(_SAFE_TEXT)
        if not isinstance(error, (TriggerFailedError, expose)):
            logger.error("The handler %s failed with %s", _name(handler), describe(error))
            error = TriggerFailedError(_SAFE_TEXT)
        raise error

    return invoke


def _check(handler: Any) -> None:
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"lambda_handler() needs an `async def handler(event, context)`; {_name(handler)} is none. "
            "Write it with `async def`, and put sync decorators around lambda_handler(), not inside."
        )
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        complaint = f"Lambda calls a handler with an event and a context; {_name(handler)} must take these two."
    else:
        return
    raise TypeError(complaint)


def _can_be_sent(result: object) -> bool:
    """Whether the runtime can encode it.

    awslambdaric 4.2, lambda_runtime_client.py: `post_invocation_result` encodes the answer where nothing catches, so
    that a lone surrogate, which an event may hold as well, ends the process.
    """
    try:
        json.dumps(result, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    except (TypeError, ValueError, RecursionError):
        return True  # no JSON: the runtime says so itself, and lives on
    return True


def _name(handler: object) -> str:
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__


def _prewarm(pools: Iterable[GuardedPool]) -> None:
    for pool in pools:
        _, error = process.run(pool.ping)
        if error is not None:
            logger.warning("A pool could not be prewarmed: %s", describe(error))
