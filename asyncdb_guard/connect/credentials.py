"""Who logs in, and with which password: what the URL says, or a provider that can fetch it anew."""

from __future__ import annotations

from typing import Protocol

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import ConnectTarget


class Credentials(Protocol):
    """Where the login for a connect comes from.

    A provider is asked once for each connect, on the event loop and within the bound on that connect. When the server
    refuses the login, it is asked once more. It lives as long as its pool, over all event loops and forks.
    """

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        """Return `target` with its user and its password: `dataclasses.replace(target, password=SecretStr(...))`.

        `refused` is an earlier answer, with which the server has just refused the login: answer with something newer.
        Raise ConnectFailedError where trying again later may help, and the breaker counts it; ConfigurationError where
        somebody has to mend something.
        """
        ...


class FixedCredentials:
    """The user and the password of the URL; there is nothing newer."""

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        return target


def credentials_for(settings: DatabaseSettings, own: Credentials | None = None) -> Credentials:
    """The user's own provider, else the one that the settings ask for. Raises ConfigurationError where both do."""
    asked = next((knob for knob in ("secret_arn", "iam_auth") if getattr(settings, knob)), None)
    if own is not None and asked is not None:
        raise ConfigurationError(f"{label(asked)} and credentials= of GuardedPool exclude each other: take one out.")
    if own is not None:
        return own
    if settings.secret_arn is not None:
        from asyncdb_guard.connect.aws.secrets_manager import SecretsManagerCredentials

        return SecretsManagerCredentials(settings.secret_arn, settings.connect_timeout / 2)
    if settings.iam_auth:
        from asyncdb_guard.connect.aws.iam import IamCredentials

        return IamCredentials()
    return FixedCredentials()
