"""Who logs in, and with which password: as the URL says, or from a provider that can fetch new credentials."""

from __future__ import annotations

from typing import Protocol

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import ConnectTarget


class Credentials(Protocol):
    """Provides the user and the password for each connect.

    `complete` is called once per connect, on the event loop and within the connect's timeout, and once more if the
    server refuses the login. A provider lives as long as its pool, over all event loops and forks.
    """

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        """Return `target` with a user and a password: `dataclasses.replace(target, password=SecretStr(...))`.

        `refused` is an earlier result that the server has just refused: return newer credentials. Raise
        ConnectFailedError if a later attempt may succeed (the breaker counts it), and ConfigurationError if somebody
        has to fix something (it does not).
        """
        ...


class FixedCredentials:
    """The user and the password of the URL, which never change."""

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        return target


def credentials_for(settings: DatabaseSettings, own: Credentials | None = None) -> Credentials:
    """Return the caller's own provider, else the one in the settings. Raises ConfigurationError if there are both."""
    asked = next((knob for knob in ("secret_arn", "iam_auth") if getattr(settings, knob)), None)
    if own is not None and asked is not None:
        raise ConfigurationError(f"{label(asked)} and credentials= of GuardedPool exclude each other: remove one.")
    if own is not None:
        return own
    if settings.secret_arn is not None:
        from asyncdb_guard.connect.aws.secrets_manager import SecretsManagerCredentials

        return SecretsManagerCredentials(settings.secret_arn, settings.connect_timeout / 2)
    if settings.iam_auth:
        from asyncdb_guard.connect.aws.iam import IamCredentials

        return IamCredentials(settings.iam_host)
    return FixedCredentials()
