"""Turns a coroutine function into the plain function that Lambda calls, and its errors into one safe error."""

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
"""The text that the caller sees in place of an error's own. Cognito adds a period."""

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
    """Turn `async def handler(event, context)` into a plain function for the Lambda runtime. Also a decorator.

    All handlers of a process share one event loop, which is created at the first call and kept, so that their pools
    stay warm. Every call gets its own copy of the caller's context variables. Tasks that the handler leaves behind keep
    running in later calls. Apply sync decorators, such as Powertools', around this one, not inside it.

    `prewarm`: pools that open a connection while Lambda initialises the environment; default none. It has no effect
    outside Lambda or under SnapStart. A failure is logged and counted by the pool's breaker; the environment starts
    anyway.

    `expose`: error types that the function's caller may see unchanged; default none.

    The returned function raises TriggerFailedError with a fixed text for every other error of the handler, including
    CancelledError and SystemExit; the type and the place of the error go to the log. A TriggerFailedError of the
    handler passes unchanged. It raises RuntimeError if an event loop is already running. `lambda_handler` itself raises
    TypeError if `handler` is not a coroutine function that takes an event and a context.

    In Lambda, SIGTERM closes the pools' sessions, calls the signal's previous handler, and exits. If
    `snapshot_restore_py` is installed, the sessions are also closed before a SnapStart snapshot.
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
            logger.error("The result of %s is not valid UTF-8. Remove lone surrogates from its texts.", _name(handler))
            raise TriggerFailedError(_SAFE_TEXT)
        if not isinstance(error, (TriggerFailedError, expose)):
            logger.error("The handler %s failed: %s", _name(handler), describe(error))
            error = TriggerFailedError(_SAFE_TEXT)
        try:
            raise error
        finally:
            del error  # as in `process.run`

    return invoke


def _check(handler: Any) -> None:
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"lambda_handler() needs an `async def handler(event, context)`, which {_name(handler)} is not. "
            "Define it with `async def`, and apply sync decorators around lambda_handler(), not inside it."
        )
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        complaint = f"Lambda passes an event and a context. Give {_name(handler)} these two parameters."
    else:
        return
    raise TypeError(complaint)


def _can_be_sent(result: object) -> bool:
    """Whether the runtime can encode the result.

    awslambdaric 4.2, lambda_runtime_client.py: `post_invocation_result` encodes it where nothing catches the error, so
    that a lone surrogate, which an event may contain, too, ends the process.
    """
    try:
        json.dumps(result, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    except (TypeError, ValueError, RecursionError):
        return True  # not JSON: the runtime reports that itself, and survives
    return True


def _name(handler: object) -> str:
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__


def _prewarm(pools: Iterable[GuardedPool]) -> None:
    for pool in pools:
        _, error = process.run(pool.ping)
        if error is not None:
            logger.warning("A pool could not be prewarmed: %s", describe(error))
