"""`asyncdb-guard budget`, against a real server: what it prints, what it changes, and what it exits with."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from asyncdb_guard import DatabaseSettings
from asyncdb_guard.cli.budget import _Report
from asyncdb_guard.cli.main import main
from asyncdb_guard.fleet.budget import Demand
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

FLEET = ("budget", "--concurrency", "20", "--vcpu", "1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url)


@pytest.fixture
def as_administrator(monkeypatch: pytest.MonkeyPatch, server: Cluster) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", server.url())


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Label -> text; several lines of one label are joined."""
    lines: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        label, _, text = line.partition(" ")
        lines[label] = f"{lines[label]} {text.strip()}" if label in lines else text.strip()
    return lines


def limit_of(server: Cluster, role: str) -> int:
    return int(server.psql(f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{role}'"))


@pytest.mark.usefixtures("here")
def test_a_fleet_that_fits(server: Cluster, role: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLEET, "--others", "10"]) == 0
    lines = told(capsys)
    slots = server.psql(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    )
    assert lines["fits"] == f"20 + 10 of {slots}: ok"
    assert f"role {role}: no limit" in lines["server"]
    assert "10 are left to them" in lines["server"]
    assert lines["enforce"].startswith(f"ALTER ROLE {role} CONNECTION LIMIT 20;")
    assert "reserved concurrency of the function: 20" in lines["enforce"]
    assert re.fullmatch(
        r"login \d+ ms from here \(median of 5\); 200 logins a second: all 20 are back after 0\.1 s at the earliest",
        lines["herd"],
    )
    assert "RESET_TIMEOUT_MS=500 LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MAX_MS=2000" in lines["set"]
    assert "(yours: 2000, 5000)" in lines["set"]
    fitted, yours = re.findall(r"4 s restart: 99 % served after ([\d.]+) s \(yours ([\d.]+) s\)", lines["then"])[0]
    assert float(fitted) < float(yours)
    assert "60 s failover" in lines["then"]
    assert limit_of(server, role) == -1


@pytest.mark.usefixtures("here")
def test_a_fleet_that_does_not_fit(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "--concurrency", "150", "--function", "b=50", "--vcpu", "1", "--others", "17"]) == 1
    lines = told(capsys)
    assert lines["fits"] == "200 + 17 of 97: does not fit: 60% never get a session"
    assert f"ALTER ROLE {role} CONNECTION LIMIT 80;" in lines["enforce"]
    assert "reserved concurrency of the function: 60; reserved concurrency of b: 20" in lines["enforce"]
    assert "a pooler" in lines["warn"]


@pytest.mark.usefixtures("here")
def test_every_process_and_every_place_of_a_pool_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", "2")
    assert main([*FLEET, "--processes", "2", "--others", "1"]) == 0
    lines = told(capsys)
    assert lines["fits"].startswith("80 + 1 of ")
    assert "all 40 are back" in lines["herd"]  # one login each


@pytest.mark.usefixtures("here")
def test_a_limit_of_the_role_that_is_too_low_is_told(
    server: Cluster, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 7")
    assert main([*FLEET, "--others", "1"]) == 1
    lines = told(capsys)
    assert f"role {role}: limit 7" in lines["server"]
    assert "CONNECTION LIMIT of 7 is too low" in lines["warn"]


def test_what_other_roles_may_use_is_left_to_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cluster.start(16, max_connections=50) as server:
        server.psql("CREATE ROLE app LOGIN; CREATE ROLE reports LOGIN CONNECTION LIMIT 12;")
        monkeypatch.setenv("LAMBDA_DATABASE_URL", server.url(user="app"))
        assert main(FLEET) == 0
        lines = told(capsys)
        assert lines["fits"] == "20 + 12 of 47: ok"
        assert "others use 0 now, 12 at most" in lines["server"]


@pytest.mark.usefixtures("here")
def test_where_other_roles_have_no_limit_one_says_what_to_leave_to_them(
    server: Cluster, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.psql(f"CREATE ROLE {role}_other LOGIN")
    assert main(FLEET) == 0
    assert "set what to leave to them with --others" in told(capsys)["server"]


@pytest.mark.usefixtures("as_administrator")
def test_apply_sets_the_limit_after_showing_it(server: Cluster, role: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLEET, "--role", role, "--others", "1", "--apply"]) == 0
    lines = told(capsys)
    assert lines["enforce"].startswith(lines["applied"])
    assert limit_of(server, role) == 20


@pytest.mark.usefixtures("here")
def test_a_role_that_may_not_set_its_limit_is_told_who_may(
    server: Cluster, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FLEET, "--others", "1", "--apply"]) == 2
    captured = capsys.readouterr()
    assert "as an administrator" in captured.err
    assert f"ALTER ROLE {role} CONNECTION LIMIT 20" in captured.out
    assert limit_of(server, role) == -1


@pytest.mark.usefixtures("as_administrator")
def test_a_superuser_is_bound_by_no_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLEET, "--others", "1"]) == 1
    assert "superuser" in told(capsys)["warn"]


@pytest.mark.usefixtures("as_administrator")
def test_a_role_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLEET, "--role", "nobody"]) == 2
    assert "--role names no role" in capsys.readouterr().err


def test_behind_a_proxy_nobody_can_tell(
    url_via_tcp_proxy: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url_via_tcp_proxy)
    monkeypatch.setenv("LAMBDA_DATABASE_PROXY_HOST", f"127.0.0.1:{proxy.port}")
    assert main([*FLEET, "--apply"]) == 1
    lines = told(capsys)
    assert lines["fits"].startswith("unknown: behind a proxy 20 clients share its sessions")
    assert "enforce" not in lines
    assert "applied" not in lines


def test_a_server_that_is_away_is_one_sentence(
    url_via_tcp_proxy: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.refuse = True
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url_via_tcp_proxy)
    assert main(FLEET) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("The database could not be reached")
    assert "127.0.0.1" not in captured.err


def test_iam_logins_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    settings = DatabaseSettings(url="postgresql://app@db.example/app", iam_auth=True)
    _Report(Console(width=200)).warnings(Demand({"a": 5}), settings)
    assert "200 logins a second" in told(capsys)["warn"]


def test_without_a_url_the_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FLEET) == 2
    assert "LAMBDA_DATABASE_URL" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["b", "=3", "b=0", "b=x"])
def test_a_function_without_a_number_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*FLEET, "--function", given])
    assert "--function" in capsys.readouterr().err
