"""Credentials from AWS Secrets Manager, in the format that RDS writes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from concurrent.futures import Future
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, cast

from pydantic import SecretStr

from asyncdb_guard.connect.aws.boto import aws_session, off_loop
from asyncdb_guard.errors import ConfigurationError, ConnectFailedError, GuardError
from asyncdb_guard.events import logger
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import DEFAULT_PORT, ConnectTarget
from asyncdb_guard.settings.url import parse_endpoint

_ARN = re.compile(r"arn:[\w-]+:secretsmanager:(?P<region>[a-z0-9-]+):[0-9]{12}:secret:[^\s:]+(?P<suffix>:\S*)?")
"""The suffix is ECS's: `:key:version-stage:version-id`. Source: Amazon ECS developer guide, "Passing Secrets Manager
secrets through environment variables"."""

_LABEL = label("secret_arn")

_REMEDIES = {
    "AccessDeniedException": "allow this role secretsmanager:GetSecretValue on it, and kms:Decrypt on a key of its own",
    "DecryptionFailure": "allow this role kms:Decrypt with its key",
    "InvalidRequestException": "it is scheduled for deletion or has no value yet; restore it, or store a value",
    "ResourceNotFoundException": "the region that the ARN names has no such secret; correct the ARN",
    "UnrecognizedClientException": "the AWS credentials of this process are not valid; check the function's role",
}
"""What to do about errors that a retry does not fix. Source: the API reference of GetSecretValue."""


_USED = ("username", "password", "host", "port", "dbname", "database", "engine")
_DESCRIPTIVE = frozenset({"masterarn", "dbInstanceIdentifier", "dbClusterIdentifier"})
"""What else RDS and its rotation functions write into a secret."""

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
_KEYS_MAX = 5
"""Unused keys that are named."""


@dataclass(frozen=True, slots=True, repr=False)
class _Secret:
    user: str
    password: SecretStr
    host: str | None
    port: int | None
    database: str | None
    unused: tuple[str, ...]
    """The keys that mean nothing here."""


class SecretsManagerCredentials:
    """Keeps the secret until the server refuses it, then fetches it again. Lives as long as its pool.

    `arn` names the secret and its region; `timeout`, in seconds, bounds a connect to AWS and the wait for its answer.
    """

    def __init__(self, arn: str, timeout: float) -> None:
        self._arn = arn
        self._timeout = timeout
        self._secret: _Secret | None = None
        self._fetching: Future[None] | None = None
        self._pid = 0
        self._told_of_unused = False

    async def complete(self, target: ConnectTarget, *, refused: ConnectTarget | None = None) -> ConnectTarget:
        """Add the secret's user and password, and its host, port and dbname if `target` has none.

        Raises ConnectFailedError while AWS is unavailable, and ConfigurationError for an unusable secret.
        """
        secret = self._secret
        if secret is None or _merged(target, secret) == refused:
            secret = await self._fetched()
        return _merged(target, secret)

    async def _fetched(self) -> _Secret:
        """Fetch the secret; callers that ask meanwhile share the answer."""
        if self._fetching is None or self._fetching.done() or self._pid != os.getpid():
            self._pid = os.getpid()
            self._fetching = off_loop(self._fetch)
        await asyncio.wrap_future(self._fetching)
        assert self._secret is not None
        return self._secret

    def _fetch(self) -> None:
        # stored from this thread: a cold start may outlast one connect, and then the next one finds the secret
        self._secret = _parsed(_fetch_text(self._arn, self._timeout))
        if self._secret.unused and not self._told_of_unused:
            self._told_of_unused = True
            logger.warning(
                "The secret of %s has keys that are not used: %s. Used are %s. Correct or remove the others.",
                _LABEL,
                ", ".join(self._secret.unused),
                ", ".join(_USED),
            )


def _fetch_text(arn: str, timeout: float) -> SecretStr:
    region = _ARN.fullmatch(arn)
    if region is None:
        raise ConfigurationError(f"{_LABEL} must have the form arn:aws:secretsmanager:region:account:secret:name.")
    if region["suffix"] is not None:
        raise ConfigurationError(
            f"{_LABEL} ends with the `:key:version-stage:version-id` of an ECS task definition. Remove everything from"
            " the first colon after the secret's name: the whole secret is read."
        )
    remedy = "in a VPC, add a NAT gateway, or an interface endpoint in the region that the ARN names"
    with aws_session("Secrets Manager", remedy) as session:
        from botocore.config import Config
        from botocore.exceptions import ClientError

        # one attempt: a second one would exceed the timeout of a connect
        config = Config(connect_timeout=timeout, read_timeout=timeout, retries={"total_max_attempts": 1})
        # never stored: a fork would share its socket
        client: Any = session.client("secretsmanager", region_name=region["region"], config=config)
        try:
            text = client.get_secret_value(SecretId=arn).get("SecretString")
        except ClientError as error:
            raise _refusal(error.response) from error
        finally:
            client.close()
    if not text:
        raise ConfigurationError(f"The secret of {_LABEL} has no text. Store a JSON object in it.")
    return SecretStr(text)


def _refusal(response: Any) -> GuardError:
    code = response.get("Error", {}).get("Code", "unknown")
    if code in _REMEDIES:
        return ConfigurationError(f"The secret of {_LABEL} could not be read: {_REMEDIES[code]} ({code}).")
    return ConnectFailedError(f"Secrets Manager did not answer. Try again later ({code}).")


def _parsed(text: SecretStr) -> _Secret:
    # raised in a frame whose variables do not hold the text, for tools that report the variables of each frame
    secret = _read(text.get_secret_value())
    if isinstance(secret, str):
        raise ConfigurationError(f"The secret of {_LABEL} {secret}.")
    return secret


def _read(text: str) -> _Secret | str:
    """Return the secret, or what is wrong with it."""
    fields = _fields(text)
    if fields is None:
        return "is not a JSON object: store username and password in one"
    user, password = (_word(fields.get(name)) for name in ("username", "password"))
    if user is None or password is None:
        missing = [name for name, value in (("username", user), ("password", password)) if value is None]
        return f"has no {' and no '.join(missing)}: add it as a JSON string"
    if not _is_postgres(fields.get("engine")):
        return "is for another kind of database: use a secret whose engine is postgres, or correct its engine"
    for name in ("host", "port", "dbname", "database"):
        if fields.get(name) not in (None, "") and _word(fields[name]) is None:
            return f"has a {name} that is neither a string nor a whole number: correct or remove it"
    ports = {port for port in (_word(fields.get("port")),) if port is not None}
    endpoint = _endpoint(_word(fields.get("host")))
    if endpoint is None:
        return "has a host that is not a name, an address, host:port or [IPv6]:port: correct it"
    if endpoint[1] is not None:
        ports.add(str(endpoint[1]))
    if not all(port.isdecimal() and 1 <= int(port) <= 65535 for port in ports):
        return "has a port that is not a number from 1 to 65535: correct or remove it"
    if len(set(map(int, ports))) > 1:
        return "names one port in host and another in port: make them equal, or remove one"
    databases = {name for name in map(_word, (fields.get("dbname"), fields.get("database"))) if name is not None}
    if len(databases) > 1:
        return "names one database in dbname and another in database: remove one"
    return _Secret(
        user,
        SecretStr(password),
        host=endpoint[0],
        port=int(ports.pop()) if ports else None,
        database=databases.pop() if databases else None,
        unused=_unused(fields),
    )


def _endpoint(host: str | None) -> tuple[str | None, int | None] | None:
    """Split what may be a name, an address or either with a port, as Terraform's `endpoint`; None if it is neither."""
    if host is None:
        return None, None
    try:
        return str(ip_address(host)), None  # an IPv6 address without brackets, too
    except ValueError:
        return parse_endpoint(host)


def _is_postgres(engine: object) -> bool:
    """`postgres`, `aurora-postgresql` and the like, or no word on it."""
    return engine is None or engine == "" or (isinstance(engine, str) and "postgres" in engine.lower())


def _unused(fields: dict[str, object]) -> tuple[str, ...]:
    """The names of keys without a meaning, as far as they look like names."""
    unused = [name for name in fields if name not in _USED and name not in _DESCRIPTIVE]
    named = [name for name in unused if _KEY.fullmatch(name)][:_KEYS_MAX]
    return (*named, f"{len(unused) - len(named)} more") if len(unused) > len(named) else tuple(named)


def _fields(text: str) -> dict[str, object] | None:
    try:
        fields: object = json.loads(text)
    except ValueError:
        return None
    return cast("dict[str, object]", fields) if isinstance(fields, dict) else None


def _word(value: object) -> str | None:
    """Return a string or an integer as a string, and None for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _merged(target: ConnectTarget, secret: _Secret) -> ConnectTarget:
    host = target.host or secret.host
    if host is None:
        raise ConfigurationError(
            f"Neither the database URL nor the secret of {_LABEL} names a host. Add one to either."
        )
    return replace(
        target,
        host=host,
        port=target.port or secret.port or DEFAULT_PORT,
        user=secret.user,
        password=secret.password,
        database=target.database or secret.database or secret.user,
    )
