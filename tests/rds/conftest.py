"""A server that asks for passwords, and an AWS that answers in this process."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import boto3.session
import pytest
from moto import mock_aws
from moto.core.exceptions import JsonRESTError
from moto.secretsmanager.models import SecretsManagerBackend

from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

REGION = "eu-west-1"


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[Cluster]:
    """A PostgreSQL where everybody but the superuser needs a password."""
    with Cluster.start(16, auth="scram-sha-256") as cluster:
        yield cluster


class SecretsManager:
    """moto's Secrets Manager, which counts and fails on command."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.fetches = 0
        """GetSecretValue calls that came in."""
        self.refusal: str | None = None
        """The error code that every call gets."""

    def create(self, value: dict[str, Any] | str) -> str:
        """Store a secret, a text as it is; return its ARN."""
        text = value if isinstance(value, str) else json.dumps(value)
        return str(self._client.create_secret(Name="sign-up", SecretString=text)["ARN"])

    def create_binary(self) -> str:
        return str(self._client.create_secret(Name="sign-up", SecretBinary=b"\0\1")["ARN"])

    def put(self, arn: str, value: dict[str, Any]) -> None:
        """What a rotation does in the end."""
        self._client.put_secret_value(SecretId=arn, SecretString=json.dumps(value))

    def delete(self, arn: str) -> None:
        """Schedule the deletion."""
        self._client.delete_secret(SecretId=arn)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Botocore's calls are answered by moto; a role as Lambda gives it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_SESSION_TOKEN": "testing",
        "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with mock_aws():
        yield


@pytest.fixture
def secrets_manager(aws: None, monkeypatch: pytest.MonkeyPatch) -> SecretsManager:
    """A Secrets Manager with nothing in it."""
    manager = SecretsManager(boto3.session.Session().client("secretsmanager", region_name=REGION))
    answer = SecretsManagerBackend.get_secret_value

    def get_secret_value(*arguments: Any, **options: Any) -> Any:
        manager.fetches += 1
        if manager.refusal is not None:
            raise JsonRESTError(manager.refusal, f"said of {arguments}")
        return answer(*arguments, **options)

    monkeypatch.setattr(SecretsManagerBackend, "get_secret_value", get_secret_value)
    return manager


class Resolver:
    """Answers for made-up names, and may send each to a port of its own."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, int]] = {}


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """This process's DNS."""
    resolver = Resolver()
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return ask(*resolver.answers.get(host, (host, port)), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return resolver
