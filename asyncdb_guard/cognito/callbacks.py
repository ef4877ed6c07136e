"""The callbacks: coroutine functions of the user's own, or SQL statements."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from asyncdb_guard.cognito.event import CognitoUser
from asyncdb_guard.cognito.statements import ClaimsStatement, ProvisionStatement, Statement
from asyncdb_guard.errors import ConfigurationError, DatabaseUnavailableError, GuardError
from asyncdb_guard.settings.problems import label

Callback: TypeAlias = Callable[[Any, CognitoUser], Awaitable[Any]]
"""`async def callback(conn, user)`, with an asyncpg connection."""


class CallbackError(GuardError):
    """The callback raised one of this library's own errors, whose text the log would otherwise take to be safe."""


def claims_callback(given: Callback | str | None, setting: str | None) -> Callback:
    """The callback that loads claims: from `CognitoTriggers`, else from the setting. Raises ConfigurationError."""
    return _create("claims", ClaimsStatement, given, setting, label("claims_sql"))


def provision_callback(given: Callback | str | None, setting: str | None) -> Callback:
    """The callback that writes a user: from `CognitoTriggers`, else from the setting. Raises ConfigurationError."""
    return _create("provision", ProvisionStatement, given, setting, label("provision_sql"))


def callback_id(callback: object) -> str:
    """Identify a callback in cache keys, so that a changed callback does not get cached answers of the old one.

    The state of an object or a closure is not part of it: it has no representation that is stable across processes.
    """
    if isinstance(callback, Statement):
        return callback.text
    function: Any = inspect.unwrap(cast("Callable[..., Any]", callback))
    bound = ""
    while isinstance(function, functools.partial):
        bound += ascii((function.args, sorted(function.keywords.items())))
        function = function.func
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}{bound}"


def _create(
    name: str,
    statement: type[ClaimsStatement | ProvisionStatement],
    given: object,
    setting: str | None,
    setting_label: str,
) -> Callback:
    if given is None:
        if setting is None:
            raise ConfigurationError(
                f"There is no {name} callback. Pass {name}= to CognitoTriggers, or set {setting_label}."
            )
        return statement(setting, setting_label)
    if isinstance(given, str):
        return statement(given, f"{name}= of CognitoTriggers")
    if not callable(given):
        raise _not_async(name)

    async def call(conn: Any, user: CognitoUser) -> Any:
        try:
            answer = given(conn, user)
            if inspect.isawaitable(answer):
                return await answer
        except DatabaseUnavailableError:
            raise  # from another GuardedPool that the callback uses
        except GuardError as error:
            raise CallbackError(f"The callback raised a {type(error).__name__}.") from error
        raise _not_async(name)

    return functools.update_wrapper(call, given)


def _not_async(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name}= of CognitoTriggers must be an `async def {name}(conn, user)` or an SQL statement as a str."
    )
