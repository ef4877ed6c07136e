"""The callbacks: coroutine functions of the user's own, or SQL statements."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar, cast

from asyncdb_guard.cognito.event import CognitoClient, CognitoUser
from asyncdb_guard.cognito.statements import MachineClaims, ProvisionStatement, Statement, UserClaims
from asyncdb_guard.errors import ConfigurationError, DatabaseUnavailableError, GuardError, StatementTimeoutError
from asyncdb_guard.settings.problems import label

S = TypeVar("S", CognitoUser, CognitoClient)

Callback: TypeAlias = Callable[[Any, CognitoUser], Awaitable[Any]]
"""`async def callback(conn, user)`, with an asyncpg connection."""

MachineCallback: TypeAlias = Callable[[Any, CognitoClient], Awaitable[Any]]
"""`async def callback(conn, client)`, with an asyncpg connection."""


TokenCallback: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
"""Either of them that loads claims."""


class CallbackError(GuardError):
    """The callback raised one of this library's own errors, whose text the log would otherwise take to be safe."""


def claims_callback(given: Callback | str | None, setting: str | None) -> Callback:
    """The callback that loads claims: from `CognitoTriggers`, else from the setting. Raises ConfigurationError."""
    return _create("claims", UserClaims, given, setting, label("claims_sql"))


def machine_claims_callback(given: MachineCallback | str | None, setting: str | None) -> MachineCallback | None:
    """The callback that loads a machine's claims, or None if machines have none. Raises ConfigurationError."""
    if given is None and setting is None:
        return None
    return _create("machine_claims", MachineClaims, given, setting, label("machine_claims_sql"))


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
    statement: Callable[[str, str], Callable[[Any, S], Awaitable[Any]]],
    given: object,
    setting: str | None,
    setting_label: str,
) -> Callable[[Any, S], Awaitable[Any]]:
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

    async def call(conn: Any, subject: S) -> Any:
        try:
            answer = given(conn, subject)
            if inspect.isawaitable(answer):
                return await answer
        except (DatabaseUnavailableError, StatementTimeoutError):
            raise  # the former from another GuardedPool that the callback uses
        except GuardError as error:
            raise CallbackError(f"The callback raised a {type(error).__name__}.") from error
        raise _not_async(name)

    return functools.update_wrapper(call, given)


def _not_async(name: str) -> ConfigurationError:
    subject = "client" if name == "machine_claims" else "user"
    return ConfigurationError(
        f"{name}= of CognitoTriggers must be an `async def {name}(conn, {subject})` or an SQL statement as a str."
    )
