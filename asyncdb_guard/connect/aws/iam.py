"""RDS IAM authentication: a signed token in place of a password."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from asyncdb_guard.connect.aws.boto import aws_session, off_loop
from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import ConnectTarget
from asyncdb_guard.settings.url import parse_endpoint

_LIFETIME = 900
"""Seconds for which RDS accepts a token. It is checked only at login."""

_RDS_HOST = re.compile(r"\.(?P<region>[a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?\.?", re.IGNORECASE)


class IamCredentials:
    """Signs a token for each connect, with no network call of its own. Stores no token."""

    def __init__(self, signed_for: str | None = None) -> None:
        """`signed_for`: RDS's own endpoint, `host` or `host:port`, if a connect goes to an alias or a tunnel."""
        self._host, self._port = (signed_for and parse_endpoint(signed_for)) or (None, None)

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        """Add a token for the host that is connected to, which may be the proxy's, or for the one set in its place.

        Raises ConfigurationError if there is no role or no region, and ConnectFailedError while the role's credentials
        are unavailable.
        """
        endpoint = replace(target, host=self._host or target.host, port=self._port or target.port)
        token = await asyncio.wrap_future(off_loop(lambda: SecretStr(_token(endpoint))))
        return replace(target, password=token)


def _token(target: ConnectTarget) -> str:
    with aws_session(
        f"IAM authentication ({label('iam_auth')})", "the role's credentials could not be read; try again later"
    ) as session:
        from botocore.exceptions import NoCredentialsError
        from botocore.model import ServiceId
        from botocore.signers import RequestSigner

        region = _region(target, session.region_name)
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        signer: Any = RequestSigner(ServiceId("rds-db"), region, "rds-db", "v4", credentials, session.events)
        url = f"https://{target.host}:{target.port}/?Action=connect&DBUser={quote(str(target.user), safe='')}"
        request: dict[str, object] = {"method": "GET", "url": url, "body": {}, "headers": {}, "context": {}}
        signed = signer.generate_presigned_url(request, operation_name="connect", expires_in=_LIFETIME)
        return str(signed).removeprefix("https://")


def _region(target: ConnectTarget, configured: str | None) -> str:
    """The region in the database's host name if there is one, as a token is valid for one region only."""
    named = _RDS_HOST.search(str(target.host))
    region = named["region"] if named is not None else os.environ.get("AWS_REGION") or configured
    if not region:
        raise ConfigurationError(f"{label('iam_auth')} finds no region. Set AWS_REGION, or use RDS's own endpoint.")
    return region
