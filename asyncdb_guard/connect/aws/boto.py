"""Shared by the credential providers: boto3 in a thread, with its errors turned into ours."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from asyncdb_guard.errors import ConfigurationError, ConnectFailedError, GuardError

T = TypeVar("T")

_LOGGERS = frozenset({"boto3", "botocore", "s3transfer", "urllib3"})
_NO_ROLE = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})


def off_loop(work: Callable[[], T]) -> Future[T]:
    """Run blocking `work` in its own thread; wait for the result with `asyncio.wrap_future`.

    A daemon thread: one of the loop's executor would keep the process from exiting until AWS answers.
    """
    future: Future[T] = Future()
    # so that a waiter that is cancelled does not cancel it for the others
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
    """Yield a new session, which finds the role's current credentials, also after a fork or a SnapStart restore.

    Raises GuardError for botocore's errors in the block; `remedy` says what to do if `service` is unavailable.
    """
    try:
        from boto3.session import Session
        from botocore.exceptions import BotoCoreError
    except ImportError:
        Session = None  # noqa: N806
        BotoCoreError = Exception  # noqa: N806
    if Session is None:
        raise ConfigurationError("Credentials from AWS need the extra aws: pip install 'asyncdb-guard[aws]'.")
    try:
        with _unlogged():
            yield Session()
    except BotoCoreError as error:
        raise _trouble(type(error).__name__, service, remedy) from error


@contextmanager
def _unlogged() -> Generator[None]:
    """Keep botocore's debug records of this thread out of the log: they have secrets, tokens and signatures in full."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or threading.get_ident() != thread

    loggers = [
        one for name, one in list(logging.root.manager.loggerDict.items())
        if isinstance(one, logging.Logger) and name.partition(".")[0] in _LOGGERS
    ]  # fmt: skip
    for one in loggers:
        one.addFilter(passes)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(passes)


def _trouble(kind: str, service: str, remedy: str) -> GuardError:
    if kind in _NO_ROLE:
        return ConfigurationError(f"No AWS credentials were found for {service}. Give the function a role ({kind}).")
    return ConnectFailedError(f"{service} is unavailable: {remedy} ({kind}).")
