"""RDS IAM tokens: signed here, for the host that is dialled, for each connect."""

from __future__ import annotations

import datetime as dt
import logging
from urllib.parse import parse_qs, urlsplit

import boto3.session
import botocore.auth
import pytest

from asyncdb_guard import ConfigurationError, ConnectFailedError, DatabaseSettings
from asyncdb_guard.connect.aws.iam import IamCredentials
from asyncdb_guard.connect.credentials import credentials_for
from tests.support.program import run

DATABASE = "main.abc123.eu-west-1.rds.amazonaws.com"
PROXY = "main.proxy-abc123.us-east-2.rds.amazonaws.com"


@pytest.fixture
def role(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role as Lambda gives it, without a region."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "session/+=",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[dt.datetime]:
    """Botocore's clock, which a test can set."""
    now = [dt.datetime(2026, 1, 2, 3, 4, 5)]  # noqa: DTZ001  # botocore's own are naive
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: now[0])
    return now


async def token(url: str, **knobs: object) -> str:
    target = DatabaseSettings(url=url, iam_auth=True, **knobs).target
    completed = await IamCredentials(knobs.get("iam_host")).complete(target)
    assert completed.password is not None
    return completed.password.get_secret_value()


@pytest.mark.parametrize("user", ["app", "a+b c/d"])
async def test_it_is_the_token_that_boto3_makes(role, clock, user):
    url = f"postgresql://{user.replace('+', '%2B').replace(' ', '%20').replace('/', '%2F')}@{DATABASE}:6000/app"
    ours = await token(url)
    assert ours == boto3.session.Session().client("rds", region_name="eu-west-1").generate_db_auth_token(
        DATABASE, 6000, user
    )
    asked = parse_qs(urlsplit(f"https://{ours}").query)
    assert asked["DBUser"] == [user]
    assert asked["X-Amz-Expires"] == ["900"]


async def test_a_root_logger_at_debug_shows_no_token(role, clock, caplog):
    caplog.set_level(logging.DEBUG)
    signature = (await token(f"postgresql://app@{DATABASE}/app")).rpartition("Signature=")[2]
    assert len(signature) == 64
    assert signature not in caplog.text


async def test_it_is_signed_for_the_proxy_where_that_is_dialled_and_for_its_region(role, clock):
    ours = await token(f"postgresql://app@{DATABASE}/app", proxy_host=PROXY)
    assert ours == boto3.session.Session().client("rds", region_name="us-east-2").generate_db_auth_token(
        PROXY, 5432, "app"
    )


@pytest.mark.parametrize(("iam_host", "port"), [(DATABASE, 6543), (f"{DATABASE}:5432", 5432)])
async def test_behind_an_alias_or_a_tunnel_it_is_signed_for_the_endpoint_itself(role, clock, iam_host, port):
    """With the endpoint's own region; the host that is dialled stays."""
    target = DatabaseSettings(url="postgresql://app@tunnel.internal:6543/app", iam_auth=True, iam_host=iam_host).target
    assert (target.host, target.port) == ("tunnel.internal", 6543)
    ours = await token("postgresql://app@tunnel.internal:6543/app", iam_host=iam_host)
    assert ours == boto3.session.Session().client("rds", region_name="eu-west-1").generate_db_auth_token(
        DATABASE, port, "app"
    )


async def test_the_setting_reaches_the_provider(role):
    credentials = credentials_for(DatabaseSettings(url="postgresql://app@alias/app", iam_auth=True, iam_host=DATABASE))
    completed = await credentials.complete(DatabaseSettings(url="postgresql://app@alias/app", iam_auth=True).target)
    assert completed.host == "alias"
    assert completed.password is not None
    assert completed.password.get_secret_value().startswith(f"{DATABASE}:5432/?")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"iam_host": DATABASE}, r"LAMBDA_DATABASE_IAM_HOST\) needs iam_auth \(LAMBDA_DATABASE_IAM_AUTH\) to be true"),
        ({"iam_host": "a:b:c", "iam_auth": True}, r"LAMBDA_DATABASE_IAM_HOST\) must be host or host:port"),
    ],
)
def test_an_endpoint_that_cannot_be_signed_for_is_a_fault(values, told):
    with pytest.raises(ConfigurationError, match=told):
        DatabaseSettings(url="postgresql://app@alias/app", **values)


async def test_each_connect_gets_one_of_its_own(role, clock):
    first = await token(f"postgresql://app@{DATABASE}/app")
    clock[0] += dt.timedelta(minutes=15)
    assert await token(f"postgresql://app@{DATABASE}/app") != first


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
async def test_a_host_that_names_no_region_is_in_that_of_the_environment(role, monkeypatch, variable):
    monkeypatch.setenv(variable, "eu-north-1")
    assert "eu-north-1%2Frds-db" in await token("postgresql://app@db.example/app")


async def test_no_region_at_all_is_told(role):
    with pytest.raises(ConfigurationError, match=r"finds no region\. Set AWS_REGION, or use RDS's own endpoint"):
        await token("postgresql://app@db.example/app")


async def test_no_role_is_told(role, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigurationError, match=r"Give the function a role \(NoCredentialsError\)"):
        await token(f"postgresql://app@{DATABASE}/app")


@pytest.mark.slow
async def test_a_role_whose_credentials_cannot_be_had_just_now_may_work_later(role, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/")
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    with pytest.raises(
        ConnectFailedError,
        match=r"the role's credentials could not be read; try again later \(CredentialRetrievalError\)",
    ):
        await token(f"postgresql://app@{DATABASE}/app")


@pytest.mark.slow
def test_no_packet_is_sent_for_it():
    said = run(
        f"""
        import asyncio, sys
        def watch(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
                print(event, arguments)
        sys.addaudithook(watch)
        from asyncdb_guard import DatabaseSettings
        from asyncdb_guard.connect.aws.iam import IamCredentials
        target = DatabaseSettings(url="postgresql://app@{DATABASE}/app", iam_auth=True).target

        async def main():
            asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is nothing to report
            print(len((await IamCredentials().complete(target)).password) > 200)

        asyncio.run(main())
        """,
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
        AWS_SECRET_ACCESS_KEY="secret",
    )
    assert said == "True\n"
