"""What the rooms beside this one share: boto3, in a thread, with its errors in our words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from asyncdb_guard.errors import ConfigurationError, ConnectFailedError, GuardError

T = TypeVar("T")

_NO_ROLE = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})


def off_loop(work: Callable[[], T]) -> Future[T]:
    """Do blocking `work` in a thread of its own; `asyncio.wrap_future` waits for it.

    A daemon: a thread of the loop's executor would keep the process from ending for as long as AWS doesn't answer.
    """
    future: Future[T] = Future()
    # a waiter that is cancelled must not cancel it for the others
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="asyncdb_guard.connect.aws", daemon=True).start()
    return future


@contextmanager
def aws_session(service: str, remedy: str) -> Generator[Any]:
    """A new session for the block; it finds the role's present credentials, also after a fork or a SnapStart restore.

    What goes wrong in the block is told as an error of ours; `remedy` says what to do where `service` can't be used.
    """
    try:
        from boto3.session import Session
        from botocore.exceptions import BotoCoreError
    except ImportError:
        Session = None  # noqa: N806
        BotoCoreError = Exception  # noqa: N806
    if Session is None:
        raise ConfigurationError("Credentials from AWS need an extra: pip install 'asyncdb-guard[aws]'.")
    try:
        yield Session()
    except BotoCoreError as error:
        raise _trouble(type(error).__name__, service, remedy) from error


def _trouble(kind: str, service: str, remedy: str) -> GuardError:
    if kind in _NO_ROLE:
        return ConfigurationError(f"No AWS credentials were found for {service}: give the function a role ({kind}).")
    return ConnectFailedError(f"{service} could not be used: {remedy} ({kind}).")
