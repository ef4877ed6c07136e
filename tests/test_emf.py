"""One line of CloudWatch's embedded metric format for each invocation in Lambda, and events for logs."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers
from asyncdb_guard.emf import UNITS, InvocationMetrics, ProcessMetrics, emf_line
from asyncdb_guard.events import CacheMiss, CircuitOpened, log_events
from tests.cognito.conftest import returning
from tests.cognito.events import confirmation_event, id_claims, machine_event, token_event
from tests.test_docs import rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

DOWN = "postgresql://nobody@127.0.0.1:1/none"


def validated(line: str) -> dict[str, Any]:
    """Check a line by the rules of the format's specification, and return its document."""
    assert "\n" not in line
    document: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    assert len(line.encode()) <= 256 * 1024
    metadata = document["_aws"]
    assert set(metadata) == {"Timestamp", "CloudWatchMetrics"}
    assert type(metadata["Timestamp"]) is int
    assert 1e12 < metadata["Timestamp"] < 1e13  # milliseconds
    for directive in metadata["CloudWatchMetrics"]:
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert re.fullmatch(r"[A-Za-z0-9.\-_/#: ]{1,255}", directive["Namespace"])
        assert directive["Dimensions"]
        for dimensions in directive["Dimensions"]:
            assert len(dimensions) <= 30
            for name in dimensions:
                assert 1 <= len(name) <= 250
                assert isinstance(document[name], str)
                assert 1 <= len(document[name]) <= 1024
        assert 1 <= len(directive["Metrics"]) <= 100
        for metric in directive["Metrics"]:
            assert set(metric) <= {"Name", "Unit", "StorageResolution"}
            assert 1 <= len(metric["Name"]) <= 1024
            assert metric["Unit"] in {"Count", "Milliseconds"}
            assert type(document[metric["Name"]]) in {int, float}
    return document


@pytest.fixture
def in_lambda(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "pre-token")
    InvocationMetrics().publish()  # what the pools of other tests have counted
    capsys.readouterr()


@pytest.fixture
async def pool(url: str) -> AsyncIterator[GuardedPool]:
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        yield pool


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert err == ""
    return [validated(line) for line in out.splitlines()]


async def test_a_miss_and_then_a_hit(pool: GuardedPool, in_lambda: None, capsys: pytest.CaptureFixture[str]) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"role": "x"}))
    for _ in range(2):
        await triggers.load_claims(token_event("2", sub="the-sub"))
    miss, hit = printed(capsys)
    assert (miss["CacheMiss"], miss["Rejected"], miss["Failed"]) == (1, 0, 0)
    assert 0 < miss["AcquireTime"] < 5000
    assert (hit["CacheMiss"], hit["Rejected"], hit["Failed"]) == (0, 0, 0)
    assert "AcquireTime" not in hit
    assert 0 < miss["ConnectTime"] <= miss["AcquireTime"]
    assert "ConnectTime" not in hit
    assert (miss["service"], miss["function_name"]) == ("service_undefined", "pre-token")
    (directive,) = miss["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("asyncdb_guard", [["service", "function_name"]])
    for line in (miss, hit):
        assert "the-sub" not in json.dumps(line)
        assert "example" not in json.dumps(line)


async def test_a_sign_in_that_fails_or_is_refused_has_its_line_too(
    in_lambda: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = GuardedPool(DatabaseSettings(url=DOWN, breaker_fail_max=1))
    triggers = CognitoTriggers(pool, claims=returning({}))
    for _ in range(2):
        with pytest.raises(TriggerFailedError):
            await triggers.load_claims(token_event())
    with pytest.raises(TriggerFailedError):
        await triggers.load_claims({})
    failed, refused, no_event = printed(capsys)
    assert (failed["CacheMiss"], failed["Rejected"], failed["CircuitOpened"], failed["Failed"]) == (1, 0, 1, 1)
    assert (refused["CacheMiss"], refused["Rejected"], refused["CircuitOpened"], refused["Failed"]) == (1, 1, 0, 1)
    assert not {"AcquireTime", "ConnectTime"} & {*failed, *refused}
    assert no_event["Failed"] == 1
    assert "CacheMiss" not in no_event
    await pool.close()


async def test_a_machine_asks_for_no_claims(
    pool: GuardedPool, in_lambda: None, capsys: pytest.CaptureFixture[str]
) -> None:
    await CognitoTriggers(pool, claims=returning({})).load_claims(machine_event())
    (line,) = printed(capsys)
    assert "CacheMiss" not in line
    assert line["Failed"] == 0


async def test_provisioning_has_its_line(
    pool: GuardedPool, in_lambda: None, capsys: pytest.CaptureFixture[str]
) -> None:
    triggers = CognitoTriggers(pool, provision=returning(None))
    await triggers.provision_user(confirmation_event("the-sub"))
    await triggers.provision_user(confirmation_event("the-sub", "PostConfirmation_ConfirmForgotPassword"))
    await pool.close()
    with pytest.raises(TriggerFailedError):
        await triggers.provision_user(confirmation_event("the-sub"))
    done, nothing_to_do, failed = printed(capsys)
    assert (done["Provisioned"], done["Failed"]) == (1, 0)
    assert done["AcquireTime"] > 0
    assert "Provisioned" not in nothing_to_do
    assert (failed["Provisioned"], failed["Failed"]) == (0, 1)
    for line in (done, nothing_to_do, failed):
        assert "CacheMiss" not in line
        assert "the-sub" not in json.dumps(line)
        assert "example" not in json.dumps(line)


@pytest.mark.parametrize("policy", ["unchanged", "stale"])
async def test_a_sign_in_without_its_claims_is_degraded(
    in_lambda: None, capsys: pytest.CaptureFixture[str], proxy: TcpProxy, url_via_tcp_proxy: str, policy: Any
) -> None:
    """A token that was issued, but not with what the database says now, shows."""
    async with GuardedPool(DatabaseSettings(url=url_via_tcp_proxy, claims_cache_ttl_ms=0)) as pool:
        triggers = CognitoTriggers(pool, claims=returning({"role": "x"}), on_unavailable=policy)
        await triggers.load_claims(token_event(sub="the-sub"))
        proxy.refuse = True
        proxy.reset_all()
        await triggers.load_claims(token_event(sub="the-sub"))
    assert [(line["Degraded"], line["Failed"]) for line in printed(capsys)] == [(0, 0), (1, 0)]


async def test_each_connect_and_each_trip_is_in_one_line(
    url: str, in_lambda: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every pool in the process; what the init phase opened is in the first line."""
    report = InvocationMetrics()
    async with (
        GuardedPool(DatabaseSettings(url=url)) as first,
        GuardedPool(DatabaseSettings(url=DOWN, breaker_fail_max=1)) as second,
    ):
        await first.ping()
        with pytest.raises(ConnectFailedError):
            await second.ping()
        report.publish()
        report.publish()
        await first.ping()
        report.publish()
    opened, idle, warm = printed(capsys)
    assert opened["ConnectTime"] > 0
    assert (opened["CircuitOpened"], idle["CircuitOpened"], warm["CircuitOpened"]) == (1, 0, 0)
    assert not {"AcquireTime", "ConnectTime"} & idle.keys()
    assert warm["AcquireTime"] >= 0
    assert "ConnectTime" not in warm


@pytest.mark.parametrize(("initialisation", "cold"), [("on-demand", 1), ("provisioned-concurrency", 0)])
def test_the_first_line_of_a_process_is_a_cold_start(
    in_lambda: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    initialisation: str,
    cold: int,
) -> None:
    """Unless nobody waited for the process."""
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", initialisation)
    report = ProcessMetrics()
    report.publish({})
    report.publish({})
    assert [line["ColdStart"] for line in printed(capsys)] == [cold, 0]


def test_the_page_lists_every_metric_with_its_unit() -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows("docs/metrics.md", "## The metrics")}
    assert table == UNITS


def test_the_alarms_of_the_page_watch_metrics_that_exist() -> None:
    alarms = rows("docs/metrics.md", "## Alarms")
    assert len(alarms) >= 6
    for cells in alarms:
        names = re.findall(r"`([A-Z]\w+)`", cells[1])
        assert names
        assert not set(names) - set(UNITS)


async def test_outside_lambda_nothing_is_printed(pool: GuardedPool, capsys: pytest.CaptureFixture[str]) -> None:
    await CognitoTriggers(pool, claims=returning({})).load_claims(token_event())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("off", ["1", "true", "TRUE", " yes ", "on"])
async def test_the_off_switch(
    pool: GuardedPool, in_lambda: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", off)
    await CognitoTriggers(pool, claims=returning({})).load_claims(token_event())
    assert capsys.readouterr() == ("", "")


def test_names_come_from_the_conventional_variables(
    in_lambda: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "sign-in")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Shop/Identity")
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "false")
    InvocationMetrics().publish()
    (line,) = printed(capsys)
    assert line["service"] == "sign-in"
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Shop/Identity"


def test_blank_names_count_as_none(
    in_lambda: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", " ")
    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "")
    InvocationMetrics().publish()
    (line,) = printed(capsys)
    assert line["service"] == "service_undefined"
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "asyncdb_guard"


def test_a_line_is_one_write(in_lambda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writes(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.writes: list[str] = []

        def write(self, text: str) -> int:
            self.writes.append(text)
            return len(text)

    stdout = Writes()
    monkeypatch.setattr(sys, "stdout", stdout)
    InvocationMetrics().publish()
    (text,) = stdout.writes
    validated(text.removesuffix("\n"))


class Broken(io.StringIO):
    """A stdout of which one method raises."""

    def __init__(self, method: str, error: type[Exception]) -> None:
        super().__init__()
        setattr(self, method, self._raise)
        self._error = error

    def _raise(self, *_: object) -> int:
        raise self._error


CLOSED = io.StringIO()
CLOSED.close()


@pytest.mark.parametrize(
    "stdout",
    [
        None,
        CLOSED,
        object(),
        Broken("write", OSError),
        Broken("write", ValueError),
        Broken("write", RuntimeError),
        Broken("flush", BrokenPipeError),
        Broken("fileno", RuntimeError),
    ],
)
async def test_a_broken_stdout_fails_no_sign_in(
    pool: GuardedPool, in_lambda: None, monkeypatch: pytest.MonkeyPatch, stdout: Any
) -> None:
    triggers = CognitoTriggers(pool, claims=returning({"role": "x"}))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        answer = await triggers.load_claims(token_event("2"))
    assert id_claims(answer) == {"role": "x"}


def test_a_full_pipe_delays_no_sign_in(in_lambda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 65_536)
    os.set_blocking(write, True)
    with os.fdopen(read, "rb") as pipe, os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        InvocationMetrics().publish()  # would wait for ever
        size = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        pipe.read(size)
        InvocationMetrics().publish()
        monkeypatch.undo()
        assert validated(pipe.readline().decode().rstrip("\n"))["Failed"] == 0


def test_a_line_has_what_the_format_asks_for() -> None:
    line = validated(emf_line({"AcquireTime": 501.00049}, at=1.8e9, namespace="n", service="s", function="f"))
    assert line["AcquireTime"] == 501.0
    assert line["_aws"]["Timestamp"] == 1_800_000_000_000


def test_events_go_to_the_log_for_services(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="asyncdb_guard")
    log_events(CacheMiss())
    log_events(CircuitOpened(seconds=2.5))
    assert [record.getMessage() for record in caplog.records] == ["cache_miss", "circuit_opened seconds=2.5"]
    last = caplog.records[-1]
    assert (last.name, last.levelno) == ("asyncdb_guard", logging.INFO)
    assert (last.event, last.facts) == ("circuit_opened", {"seconds": 2.5})  # type: ignore[attr-defined]


async def test_log_events_is_a_listener(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="asyncdb_guard")
    async with GuardedPool(DatabaseSettings(url=url), on_event=log_events) as pool:
        await pool.ping()
    assert [record.getMessage().split()[0] for record in caplog.records] == ["connection_opened", "connection_closed"]
