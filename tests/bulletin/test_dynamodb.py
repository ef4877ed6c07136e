"""The bulletin in a DynamoDB table, moto's, behind real HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3.session
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from asyncdb_guard import CircuitOpenError, ConfigurationError, clock
from asyncdb_guard.bulletin import open_bulletin
from asyncdb_guard.bulletin.board import Bulletin, database_key
from asyncdb_guard.bulletin.dynamodb import DynamoDbStore
from asyncdb_guard.news import News
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.bulletin.conftest import MakeEnvironment, fail_trials, go_down, trip
from tests.support.calls import served
from tests.support.eventually import Eventually

REGION = "eu-west-1"
URL = "dynamodb://fleet"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def table(endpoint: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of a table `fleet` with nothing in it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL_DYNAMODB": "http://{}:{}".format(*endpoint),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client: Any = boto3.session.Session().client("dynamodb")
    client.create_table(
        TableName="fleet", BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    )  # fmt: skip
    yield client
    client.delete_table(TableName="fleet")
    client.close()


@pytest.fixture
def make_store(table: Any) -> Iterator[Callable[[], DynamoDbStore]]:
    stores: list[DynamoDbStore] = []

    def make() -> DynamoDbStore:
        stores.append(DynamoDbStore(SecretStr(URL), "database"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def item(table: Any, key: str = "database") -> dict[str, Any]:
    found: dict[str, Any] = table.get_item(TableName="fleet", Key={"id": {"S": key}}).get("Item", {})
    return found


def put(table: Any, **attributes: dict[str, Any]) -> None:
    table.put_item(TableName="fleet", Item={"id": {"S": "database"}, **attributes})


def ask(store: DynamoDbStore) -> News:
    return store.look(clock.now())


def milliseconds(ahead: float = 0.0) -> dict[str, str]:
    return {"N": str(round((time.time() + ahead) * 1000))}


def test_an_empty_table_says_nothing(make_store: Callable[[], DynamoDbStore]) -> None:
    assert ask(make_store())[1:] == (None, None, 0.0, 0)


def test_what_one_tells_the_others_hear(make_store: Callable[[], DynamoDbStore]) -> None:
    first, other = make_store(), make_store()
    first.tell_open("a", 40.0)
    other.tell_open("b", 40.0)
    other.tell_open("b", 40.0)
    assert ask(first).open == 2
    first.tell_recovered("one")
    news = ask(other)
    assert (news.recovery, news.open) == ("one", 0)
    assert news.last is not None
    assert max(news.last, news.since) <= 1.5  # its clock has whole seconds
    other.tell_recovered("two")
    assert ask(first).recovery == "one"  # it goes on


def test_a_success_long_after_the_last_begins_another_recovery(
    make_store: Callable[[], DynamoDbStore], table: Any
) -> None:
    put(table, last=milliseconds(-10), since=milliseconds(-20), recovery={"S": "old"})
    store = make_store()
    news = ask(store)
    assert (news.last, news.recovery) == (None, "old")
    store.tell_recovered("new")
    news = ask(store)
    assert news.recovery == "new"
    assert news.last is not None


def test_witnesses_stop_to_count(make_store: Callable[[], DynamoDbStore], table: Any) -> None:
    now = round(time.time() * 1000)
    put(table, open={"SS": [f"{now - 5000} a", f"{now + 5000} b", f"{now + 6000} b"]})
    store = make_store()
    assert ask(store).open == 1
    store.tell_open("c", 40.0)
    assert sorted(word.partition(" ")[2] for word in item(table)["open"]["SS"]) == ["b", "c"]


def test_the_clock_is_the_tables_own(make_store: Callable[[], DynamoDbStore], table: Any, later: Any) -> None:
    """An environment whose clock is an hour ahead."""
    later(3600.0)
    store = make_store()
    store.tell_recovered("one")
    assert abs(int(item(table)["last"]["N"]) / 1000 - time.time()) < 2.0


@pytest.mark.parametrize(
    "lie",
    [
        lambda: {"last": milliseconds(60)},
        lambda: {"last": milliseconds(), "since": milliseconds(60), "recovery": {"S": "x"}},
        lambda: {"last": {"S": "x"}},
        lambda: {"since": milliseconds(-1)},
        lambda: {"open": {"SS": ["x"]}},
        lambda: {"recovery": {"S": "x" * 65}, "since": milliseconds(-1)},
    ],
)
def test_what_nobody_can_have_told_is_an_error(
    make_store: Callable[[], DynamoDbStore], table: Any, lie: Callable[[], dict[str, Any]]
) -> None:
    put(table, **lie())  # now, as the tests before may have taken minutes
    with pytest.raises(Exception):  # noqa: B017, PT011
        ask(make_store())


async def test_all_return_soon_after_the_first_however_long_their_periods_are(
    make_environment: MakeEnvironment, proxy: TcpProxy, table: Any, later: Any, eventually: Eventually, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Bulletin, "LOOK_TIMEOUT", 1.0)  # moto takes longer on a busy machine
    first, other = (make_environment(fleet_url=URL) for _ in range(2))
    await asyncio.gather(first.ping(), other.ping())
    go_down(proxy)
    await trip(first)
    await trip(other)
    table.put_item(
        TableName="fleet",
        Item={
            "id": {"S": database_key(other.settings)},
            "open": {"SS": [f"9999999999999 {number}" for number in range(8)]},
        },
    )
    await fail_trials(other, later, 8)

    async def refused_for() -> float:
        with pytest.raises(CircuitOpenError) as refused:
            await other.ping()
        return refused.value.retry_after or 0.0

    assert await eventually(lambda: _longer(refused_for))
    proxy.refuse = False

    later(1.5)  # its clock has whole seconds
    await eventually(lambda: served(first))
    await first._core.settle(5.0)
    await eventually(lambda: served(other))
    key = database_key(other.settings)
    assert "last" in item(table, key)
    for word in (proxy.host, str(proxy.port), "postgres"):
        assert word not in f"{key}{item(table, key)}"


async def _longer(refused_for: Callable[[], Any]) -> bool:
    return bool(await refused_for() > 5.0)


async def test_a_table_that_is_missing_is_one_warning_and_no_delay(
    make_environment: MakeEnvironment, proxy: TcpProxy, table: Any, caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:  # fmt: skip
    long = {"breaker_reset_timeout_ms": 60_000, "breaker_reset_timeout_max_ms": 60_000}
    pool = make_environment(fleet_url="dynamodb://another", **long)
    await pool.ping()
    go_down(proxy)
    await trip(pool)
    warnings = await eventually(lambda: [record for record in caplog.records if record.levelno >= logging.WARNING])
    waited: list[float] = []
    for _ in range(5):
        began = time.monotonic()
        with pytest.raises(CircuitOpenError):
            await pool.ping()
        waited.append(time.monotonic() - began)
    assert statistics.median(waited) < 0.5
    (record,) = warnings
    assert "The fleet store failed with ResourceNotFoundException." in record.getMessage()


def test_without_a_region_it_is_unavailable(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(Exception, match="DynamoDB"):
        DynamoDbStore(SecretStr(URL), "database")


def test_the_missing_extra_is_named(make_environment: MakeEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    settings = make_environment(fleet_url=URL).settings
    with pytest.raises(ConfigurationError, match=r"FLEET_URL\) needs the extra `aws`"):
        open_bulletin(settings)
