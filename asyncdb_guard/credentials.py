"""Who logs in, and with which password. A provider may fetch them anew; the default is what the URL says."""

from __future__ import annotations

from typing import Protocol

from asyncdb_guard.target import ConnectTarget


class Credentials(Protocol):
    """Where the login for a connect comes from.

    A provider is asked once for each connect, on the event loop, within the bound on that connect. When the server
    refuses the login (SQLSTATE class 28), it is asked once more with `renew=True`.
    """

    async def complete(self, target: ConnectTarget, *, renew: bool = False) -> ConnectTarget:
        """Return `target` with its user and its password, fetched anew where `renew` says that they were refused."""
        ...


class FixedCredentials:
    """The user and the password of the URL; fetching them anew would change nothing."""

    async def complete(self, target: ConnectTarget, *, renew: bool = False) -> ConnectTarget:
        return target
