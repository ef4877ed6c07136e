"""`asyncdb-guard watch`, on a real server, a real Redis and a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, DatabaseUnavailableError, GuardedPool
from asyncdb_guard.cli.main import main
from asyncdb_guard.testing.ports import free_port
from tests.support.calls import served
from tests.support.eventually import eventually
from tests.support.redis import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

debian = pytest.mark.debian


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`await watch(url, "--role", …, FLEET_URL=…)`: the exit code and the object of one look."""

    async def look(url: str, *options: str, **variables: str) -> tuple[int, dict[str, Any]]:
        set_up(monkeypatch, url, **variables)
        capsys.readouterr()
        code = await asyncio.to_thread(main, ["watch", "--once", "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return look


@pytest.fixture
async def fleet(server: Cluster, role: str) -> AsyncIterator[GuardedPool]:
    """Two sessions, one of them in use."""
    settings = DatabaseSettings(url=server.url(user=role, application_name="shop"), pool_max=2)
    async with GuardedPool(settings) as pool, pool.transaction():
        await pool.ping()
        yield pool


def set_up(monkeypatch: pytest.MonkeyPatch, url: str, **variables: str) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url)
    for name, value in variables.items():
        monkeypatch.setenv(f"LAMBDA_DATABASE_{name}", value)


@pytest.mark.usefixtures("fleet")
async def test_the_sessions_are_counted_without_the_watchers_own(
    watch: Any, server: Cluster, role: str, url: str
) -> None:
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 9")
    code, seen = await watch(url)
    assert code == 0
    assert seen["good"]
    assert seen["database"] == {"available": True, "fault": None}
    assert seen["store"] is None
    sessions = seen["sessions"]
    assert sessions["total"] == 2
    assert sessions["states"] == {"idle": 1, "idle in transaction": 1}
    assert sessions["applications"] == {"shop": 2}
    assert sessions["role_limit"] == 9
    assert sessions["slots"] == 97
    assert (await watch(url, "--application", "other"))[1]["sessions"]["total"] == 0


@pytest.mark.usefixtures("fleet")
async def test_another_role_may_watch_too(watch: Any, server: Cluster, role: str) -> None:
    _, seen = await watch(server.url(), "--role", role)
    assert seen["sessions"]["states"] == {"idle": 1, "idle in transaction": 1}
    stranger = f"{role}_stranger"
    server.psql(f"CREATE ROLE {stranger} LOGIN")
    _, seen = await watch(server.url(user=stranger), "--role", role)
    assert seen["sessions"]["states"] == {"hidden": 2}


@pytest.mark.usefixtures("fleet")
def test_lines_for_people(
    server: Cluster, role: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.psql(f"ALTER ROLE {role} CONNECTION LIMIT 9")
    set_up(monkeypatch, server.url(user=role))
    assert main(["watch", "--once"]) == 0
    told = capsys.readouterr().out
    assert "2 of 9 by the role's CONNECTION LIMIT" in told
    assert "1 idle, 1 idle in transaction" in told
    assert "shop 2" in told
    assert "unknown (no fleet store)" in told
    server.psql(f"CREATE ROLE {role}_stranger LOGIN")
    set_up(monkeypatch, server.url(user=f"{role}_stranger"), PROXY_PROFILE="true")
    assert main(["watch", "--once", "--role", role]) == 0
    told = capsys.readouterr().out
    assert "states are hidden: log in as the fleet's role, or grant pg_monitor" in told
    assert "behind a pooler, these are its sessions" in told


async def test_a_database_that_is_down_is_told_and_so_is_the_store(
    watch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, seen = await watch(f"postgresql://someone@127.0.0.1:{free_port()}/app")
    assert code == 1
    assert not seen["good"]
    assert seen["sessions"] is None
    assert "nothing listens at its host and port" in seen["database"]["fault"]
    nobody = f"redis://127.0.0.1:{free_port()}"
    code, seen = await watch(f"postgresql://someone@127.0.0.1:{free_port()}/app", FLEET_URL=nobody)
    assert code == 1
    assert not seen["store"]["available"]
    assert "The fleet store is unavailable" in seen["store"]["fault"]
    assert await asyncio.to_thread(main, ["watch", "--once"]) == 1
    told = capsys.readouterr().out
    assert "unavailable: The database could not be reached" in told
    assert "unknown (fleet store unavailable)" in told


async def test_a_node_of_another_kind_is_told(watch: Any, server: Cluster, role: str) -> None:
    _, seen = await watch(server.url(user=role, target_session_attrs="standby"))
    assert "target_session_attrs" in seen["database"]["fault"]


async def test_a_provider_without_credentials_is_told(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    secret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:x-AbCdEf"
    # on a busy machine, the import of boto3 alone takes seconds
    code, seen = await watch("postgresql://127.0.0.1/app", SECRET_ARN=secret, CONNECT_TIMEOUT_MS="30000")
    assert code == 1
    assert "No AWS credentials were found" in seen["database"]["fault"]


async def test_a_server_that_hangs_up_or_refuses_is_told(watch: Any, server: Cluster, role: str, url: str) -> None:
    server.psql(
        f"CREATE FUNCTION {role}.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT (1 / 0)::text $$;"
        f"ALTER ROLE {role} SET search_path = {role}, pg_catalog"
    )
    code, seen = await watch(url)
    assert code == 1
    assert (
        seen["database"]["fault"] == "The session ended, or a question was refused (22012). Look at the server's log."
    )


def test_a_role_that_does_not_exist(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(monkeypatch, url)
    assert main(["watch", "--once", "--role", "nobody"]) == 2
    assert "--role names no role of this server" in capsys.readouterr().err


# With a fleet store


@debian
async def test_the_words_of_an_outage_and_of_its_end(
    watch: Any, proxy: TcpProxy, url_via_tcp_proxy: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def told() -> str:
        capsys.readouterr()
        main(["watch", "--once"])
        return capsys.readouterr().out

    with RedisServer() as redis:
        settings = DatabaseSettings(url=url_via_tcp_proxy, fleet_url=redis.url, breaker_reset_timeout_ms=50)
        async with GuardedPool(settings) as pool:
            await pool.ping()
            assert (await watch(url_via_tcp_proxy, FLEET_URL=redis.url))[1]["store"]["open_circuits"] == 0
            proxy.refuse = True
            proxy.reset_all()
            while pool.stats()["circuit"] != "open":
                with pytest.raises(ConnectFailedError):
                    await pool.ping()
            await pool._core.settle(1.0)
            for _ in range(2):
                code, seen = await watch(url_via_tcp_proxy)
                assert code == 1
                assert seen["store"]["open_circuits"] == 1, "the watcher is no witness"
            assert "open in 1" in await asyncio.to_thread(told)
            proxy.refuse = False
            await eventually(lambda: served(pool, refusal=DatabaseUnavailableError))
            await pool._core.settle(1.0)
            code, seen = await watch(url_via_tcp_proxy)
        assert code == 0
        assert seen["store"]["open_circuits"] == 0
        assert 0 <= seen["store"]["last_success_age"] <= seen["store"]["recovery_age"] + 0.001 < 5
        lines = await asyncio.to_thread(told)
        assert "closed again" in lines
        assert "last success" in lines
    monkeypatch.delenv("LAMBDA_DATABASE_FLEET_URL")


# In a terminal


class Terminal:
    """The command in a terminal of its own; what it shows is in `shown`."""

    def __init__(self, *options: str, url: str) -> None:
        self._command = (sys.executable, "-m", "asyncdb_guard", "watch", "--every", "0.05", *options)
        self._environment = os.environ | {"LAMBDA_DATABASE_URL": url, "TERM": "xterm", "COLUMNS": "100"}
        self.shown = ""

    async def __aenter__(self) -> Self:
        self._ours, theirs = pty.openpty()
        self.process = await asyncio.create_subprocess_exec(
            *self._command, stdin=theirs, stdout=theirs, stderr=theirs, env=self._environment
        )
        os.close(theirs)
        asyncio.get_running_loop().add_reader(self._ours, self._read)
        return self

    def _read(self) -> None:
        try:
            self.shown += os.read(self._ours, 65536).decode(errors="replace")
        except OSError:  # what Linux says once the other side is closed
            asyncio.get_running_loop().remove_reader(self._ours)

    async def shows(self, words: str) -> None:
        """Wait until it does, after what it has shown so far."""
        await eventually(lambda: words in self.shown or self.process.returncode is not None, within=15)
        assert words in self.shown
        self.shown = ""

    async def __aexit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)


async def test_a_live_view_goes_on_through_an_outage_and_ends_with_ctrl_c(
    proxy: TcpProxy, server: Cluster, role: str, url_via_tcp_proxy: str
) -> None:
    async with Terminal(url=url_via_tcp_proxy) as terminal:
        await terminal.shows("0 of 97 by max_connections")
        async with GuardedPool(DatabaseSettings(url=server.url(user=role))) as pool:
            await pool.ping()
            await terminal.shows("1 of 97")
            proxy.refuse = True
            proxy.reset_all()
            await terminal.shows("unavailable: ")
            proxy.refuse = False
            await terminal.shows("+1 opened")
        await terminal.shows("-1 closed")
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.process.wait() == 130
        await terminal.shows("\x1b[?25h")  # the cursor is back
        assert "Traceback" not in terminal.shown


async def test_lines_for_scripts_go_on_until_ctrl_c(url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncdb_guard", "watch", "--every", "0.05", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"LAMBDA_DATABASE_URL": url},
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(3):
        assert json.loads(await process.stdout.readline())["good"]
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")
