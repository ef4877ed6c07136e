"""The two callbacks: coroutine functions of the user's own, or SQL statements."""

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
    """The callback raised what only this library raises. Its text is the callback's own, so nobody may have it."""


def claims_callback(given: Callback | str | None, setting: str | None) -> Callback:
    """What loads claims: what `CognitoTriggers` was given, else the setting. Raises ConfigurationError."""
    return _callback("claims", ClaimsStatement, given, setting, label("claims_sql"))


def provision_callback(given: Callback | str | None, setting: str | None) -> Callback:
    """What writes a user: what `CognitoTriggers` was given, else the setting. Raises ConfigurationError."""
    return _callback("provision", ProvisionStatement, given, setting, label("provision_sql"))


def source_of(callback: object) -> str:
    """What tells a callback from another, so that a changed one does not get the old one's cached answers.

    Not what an object of the user's own or a closure holds: nothing tells that in the same words tomorrow.
    """
    if isinstance(callback, Statement):
        return callback.text
    given: Any = inspect.unwrap(cast("Callable[..., Any]", callback))
    bound = ""
    while isinstance(given, functools.partial):
        bound += ascii((given.args, sorted(given.keywords.items())))
        given = given.func
    return f"{given.__module__}.{getattr(given, '__qualname__', type(given).__qualname__)}{bound}"


def _callback(
    name: str, statement: type[ClaimsStatement | ProvisionStatement], given: object, setting: str | None, knob: str
) -> Callback:
    if given is None:
        if setting is None:
            raise ConfigurationError(f"There is no {name} callback: pass {name}= to CognitoTriggers, or set {knob}.")
        return statement(setting, knob)
    if isinstance(given, str):
        return statement(given, f"{name}= of CognitoTriggers")
    if not callable(given):
        raise _unfit(name)

    async def call(conn: Any, user: CognitoUser) -> Any:
        try:
            answer = given(conn, user)
            if inspect.isawaitable(answer):
                return await answer
        except DatabaseUnavailableError:
            raise  # it uses a pool of ours
        except GuardError as error:
            raise CallbackError(f"The callback raised a {type(error).__name__}.") from error
        raise _unfit(name)

    return functools.update_wrapper(call, given)


def _unfit(name: str) -> ConfigurationError:
    return ConfigurationError(f"{name}= of CognitoTriggers must be an `async def {name}(conn, user)`, or an SQL text.")
