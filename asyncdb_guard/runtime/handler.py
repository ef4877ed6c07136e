"""Turns a coroutine function into the plain function that Lambda calls, and decides which errors its caller sees."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, cast, overload

from asyncdb_guard.emf import publishing
from asyncdb_guard.errors import TriggerFailedError
from asyncdb_guard.events import logger
from asyncdb_guard.failure_report import report
from asyncdb_guard.lambda_environment import function_name
from asyncdb_guard.pool import GuardedPool
from asyncdb_guard.redaction import authors_frames
from asyncdb_guard.runtime.process import process

P = ParamSpec("P")
R = TypeVar("R")

_SAFE_TEXT = "The request could not be completed"
"""The text that the caller sees in place of an error's own. Cognito appends a period."""

_ABSENT: Any = object()


@overload
def lambda_handler(
    handler: Callable[P, Coroutine[Any, Any, R]],
    /,
    *,
    prewarm: GuardedPool | Iterable[GuardedPool] | None = None,
    expose: type[Exception] | tuple[type[Exception], ...] = (),
    metrics: bool = False,
) -> Callable[P, R]: ...


@overload
def lambda_handler(
    *,
    prewarm: GuardedPool | Iterable[GuardedPool] | None = None,
    expose: type[Exception] | tuple[type[Exception], ...] = (),
    metrics: bool = False,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, R]]: ...


def lambda_handler(
    handler: Callable[P, Coroutine[Any, Any, R]] = _ABSENT,
    /,
    *,
    prewarm: GuardedPool | Iterable[GuardedPool] | None = None,
    expose: type[Exception] | tuple[type[Exception], ...] = (),
    metrics: bool = False,
) -> Callable[P, R] | Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, R]]:
    """Turn `async def handler(event, context)` into a plain function for the Lambda runtime. Also a decorator.

    All handlers of a process share one event loop, which is created at the first call and kept, so that their pools
    stay warm. Every call gets its own copy of the caller's context variables. Tasks that the handler leaves behind keep
    running in later calls. Apply sync decorators, such as Powertools', around this one, not inside it.

    `prewarm`: pools that open a connection while Lambda initialises the environment; default none. It has no effect
    outside Lambda or under SnapStart. A failure is logged and counted by the pool's breaker; the environment starts
    anyway.

    `expose`: error types that pass unchanged even if the event is Cognito's; default none.

    `metrics`: in Lambda, print one CloudWatch EMF line per call; see `asyncdb_guard.emf`. The triggers of
    `CognitoTriggers` always print their own, so leave it off for these.

    The returned function raises the handler's own errors, so that the invoker can tell their types apart. Two kinds are
    replaced by a TriggerFailedError with a fixed text, and their types and places go to the log: those that would end
    the process, such as CancelledError, SystemExit and a text that is not valid UTF-8; and, if the event is Cognito's
    (it has a `triggerSource`), all but a TriggerFailedError and those in `expose`, as Cognito shows the text to the end
    user. Outside Lambda, the replaced error is the `__cause__`.

    It raises RuntimeError if an event loop is already running. `lambda_handler` itself raises TypeError if `handler` is
    not a coroutine function that takes an event and a context.

    In Lambda, SIGTERM closes the pools' sessions, calls the signal's previous handler, and exits. If
    `snapshot_restore_py` is installed, the sessions are also closed before a SnapStart snapshot.
    """
    if handler is _ABSENT:
        return functools.partial(lambda_handler, prewarm=prewarm, expose=expose, metrics=metrics)
    _check(handler)
    pools = (prewarm,) if isinstance(prewarm, GuardedPool) else tuple(prewarm or ())
    process.prepare()
    if process.initialising:
        _prewarm(pools)

    @functools.wraps(handler)
    def invoke(*args: P.args, **kwargs: P.kwargs) -> R:
        with publishing() if metrics else contextlib.nullcontext():
            result, error = process.run(handler, *args, **kwargs)
            try:
                if error is not None:
                    raise _shown(error, handler, expose, from_cognito=_is_from_cognito(args, kwargs))
            finally:
                del error  # it may be what is raised, and its traceback then holds this frame
            if not _can_be_sent(result):
                logger.error(
                    "The result of %s is not valid UTF-8. Remove lone surrogates from its texts.", _name(handler)
                )
                raise TriggerFailedError(_SAFE_TEXT)
            return cast(R, result)

    return invoke


def _shown(
    error: BaseException, handler: object, expose: type[Exception] | tuple[type[Exception], ...], *, from_cognito: bool
) -> BaseException:
    """The error that the function's caller sees: `error`, or a safe one in its place."""
    passes = TriggerFailedError, expose if from_cognito else Exception
    if isinstance(error, passes) and _has_utf8_text(error):
        return error.with_traceback(authors_frames(error))
    failure = report(error)
    logger.error("The handler %s failed: %s", _name(handler), failure.text, extra=failure.fields())
    safe = TriggerFailedError(_SAFE_TEXT)
    if function_name() is None:
        safe.__cause__ = error
    return safe


def _has_utf8_text(error: BaseException) -> bool:
    """Whether the runtime can send the error's text. It encodes that where nothing catches an error, as in a result."""
    try:
        str(error).encode()
    except Exception:  # of the error's own __str__, too
        return False
    return True


def _is_from_cognito(args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    event: object = next(iter((*args, *kwargs.values())), None)
    return isinstance(event, Mapping) and "triggerSource" in event


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
            failure = report(error)
            logger.warning("A pool could not be prewarmed: %s", failure.text, extra=failure.fields())
