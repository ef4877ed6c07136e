"""The pytest plugin, from outside: suites of strangers, each run in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from asyncdb_guard.testing import TemporaryDatabase, TemporaryPostgres
from asyncdb_guard.testing.postgres import databases
from tests.support.eventually import Eventually

ROOT = Path(__file__).resolve().parents[2]
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
SESSION_LOOP = ("-o", "asyncio_default_test_loop_scope=session")
CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def postgres_schema():
    return "CREATE TABLE item (id serial PRIMARY KEY, name text); INSERT INTO item (name) VALUES ('first')"
"""


class Suite:
    """A folder with somebody's tests."""

    def __init__(self, folder: Path, ini: str | None = INI) -> None:
        self.folder = folder
        if ini is not None:
            (folder / "pytest.ini").write_text(ini)

    def write(self, tests: str, conftest: str = CONFTEST) -> None:
        (self.folder / "conftest.py").write_text(conftest)
        (self.folder / "test_it.py").write_text(textwrap.dedent(tests))

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """The exit status, and all that was said."""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncdb_guard", *arguments]
        done = subprocess.run(
            [*command, "-p", "asyncdb_guard.testing.plugin"],
            cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


@pytest.mark.parametrize("loop", [(), SESSION_LOOP, ("-n", "2")], ids=["function", "session", "xdist"])
def test_a_suite_leaves_its_database_as_it_was_byte_for_byte(suite: Suite, loop: tuple[str, ...]) -> None:
    suite.write(
        """
        import pytest

        @pytest.mark.parametrize("number", range(5))
        async def test_rolled_back(number, rolled_back_pool):
            name = "INSERT INTO item (name) VALUES ('x') RETURNING id"
            assert await rolled_back_pool.fetchval(name) == 2
            await rolled_back_pool.execute("CREATE TABLE more (id serial); INSERT INTO more DEFAULT VALUES")
            async with rolled_back_pool.transaction() as conn:
                assert await conn.fetchval(name) == 3

        def test_unused(rolled_back_pool):
            pass

        async def test_triggers(rolled_back_pool, guarded_settings, cognito_events, open_circuit, database_down):
            from asyncdb_guard import CircuitOpenError, ConnectFailedError
            assert cognito_events.token_event(sub="s")["request"]["userAttributes"]["sub"] == "s"
            with open_circuit(rolled_back_pool), pytest.raises(CircuitOpenError):
                await rolled_back_pool.ping()
            with database_down(rolled_back_pool), pytest.raises(ConnectFailedError):
                await rolled_back_pool.ping()

        async def test_guarded(guarded_pool, manual_clock):
            from asyncdb_guard.testing import recorded
            with recorded(guarded_pool) as events:
                await guarded_pool.ping()
                manual_clock.advance(61)
                await guarded_pool.ping()
            assert events.names == ["connection_opened", "connection_replaced", "connection_opened"]

        def test_runtime(lambda_runtime, tmp_path):
            (tmp_path / "app.py").write_text("import os\\ndef handler(*_): return os.environ['LAMBDA_DATABASE_URL']")
            assert lambda_runtime("app.handler", cwd=tmp_path).invoke({}).payload.startswith("postgresql://")
        """,
        CONFTEST
        + """
import subprocess
from asyncdb_guard.testing.postgres.installation import Installation

@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(postgres_url):
    def dump():
        program = Installation.find().programs / "pg_dump"
        done = subprocess.run([program, postgres_url], capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "restrict" not in line]
    before = dump()
    assert any("item" in line for line in before)
    yield
    assert dump() == before
""",
    )
    status, said = suite.run(*loop)
    assert status == 0, said
    assert "9 passed" in said


def test_each_worker_has_a_database_of_its_own_and_the_schema_is_set_up_once(suite: Suite) -> None:
    suite.write(
        """
        import asyncpg, pytest

        @pytest.mark.parametrize("number", range(8))
        async def test_it(number, guarded_pool, worker_id, tmp_path_factory):
            await guarded_pool.execute("UPDATE item SET name = $1", worker_id)
            assert await guarded_pool.fetchval("SELECT name FROM item") == worker_id
            oid = await guarded_pool.fetchval("SELECT oid FROM pg_database WHERE datname LIKE 'asyncdb%template'")
            name = await guarded_pool.fetchval("SELECT current_database()")
            seen = tmp_path_factory.getbasetemp().parent / f"seen-{worker_id}"
            seen.write_text(f"{oid} {name}")
        """
    )
    status, said = suite.run("-n", "2", "--dist=each", f"--basetemp={suite.folder / 'base'}")
    assert status == 0, said
    first, second = (path.read_text().split() for path in sorted((suite.folder / "base").glob("seen-*")))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_a_borrow_that_was_left_open_is_told_with_its_place_and_the_suite_goes_on(suite: Suite) -> None:
    suite.write(
        """
        async def test_guarded(guarded_pool):
            await guarded_pool.acquire().__aenter__()

        async def test_rolled_back(rolled_back_pool):
            await rolled_back_pool.acquire().__aenter__()

        async def test_next(guarded_pool, rolled_back_pool):
            assert await guarded_pool.fetchval("SELECT name FROM item") == "first"
            assert await rolled_back_pool.fetchval("SELECT name FROM item") == "first"
        """
    )
    for loop in ((), SESSION_LOOP):
        status, said = suite.run(*loop)
        assert status == 1
        assert "3 passed, 2 errors" in said, said
        assert "Borrowed at: test_it.py:3 in test_guarded." in said
        assert "Borrowed at: test_it.py:6 in test_rolled_back." in said


def test_settings_can_be_overridden_and_pools_follow_them(suite: Suite) -> None:
    suite.write(
        """
        import pytest
        from asyncdb_guard import DatabaseSettings

        @pytest.fixture(params=[1, 2, 2])
        def guarded_settings(request, postgres_url):
            return DatabaseSettings(url=postgres_url, pool_max=request.param)

        async def test_it(guarded_pool, rolled_back_pool, request):
            expected = request.node.callspec.params["guarded_settings"]
            for pool in (guarded_pool, rolled_back_pool):
                assert pool.stats()["pool_max"] == expected
                await pool.ping()
        """
    )
    status, said = suite.run(*SESSION_LOOP)
    assert status == 0, said


def test_settings_follow_the_environment_and_are_nobody_elses(suite: Suite) -> None:
    suite.write(
        """
        import pytest
        from asyncdb_guard import ConnectFailedError

        @pytest.fixture(params=["1", "2"])
        def environment(request, monkeypatch):
            monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", request.param)
            return int(request.param)

        async def test_it(environment, guarded_pool):
            assert guarded_pool.settings.pool_max == environment

        async def test_down(guarded_pool, rolled_back_pool, database_down):
            with database_down(guarded_pool):
                with pytest.raises(ConnectFailedError):
                    await guarded_pool.ping()
                await rolled_back_pool.ping()
        """
    )
    status, said = suite.run()
    assert status == 0, said


def test_a_database_without_a_schema_is_empty(suite: Suite) -> None:
    suite.write(
        """
        async def test_it(rolled_back_pool):
            assert await rolled_back_pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        """,
        conftest="",
    )
    status, said = suite.run()
    assert status == 0, said


def test_settings_without_a_url_leave_the_runtime_its_own(suite: Suite) -> None:
    suite.write(
        """
        import pytest
        from asyncdb_guard import DatabaseSettings

        @pytest.fixture
        def guarded_settings():
            return DatabaseSettings(secret_arn="arn:aws:secretsmanager:eu-west-1:123456789012:secret:db-AbCdEf")

        def test_it(lambda_runtime, tmp_path):
            (tmp_path / "app.py").write_text("import os\\ndef handler(*_): return 'LAMBDA_DATABASE_URL' in os.environ")
            assert lambda_runtime("app.handler", cwd=tmp_path).invoke({}).payload is False
        """
    )
    status, said = suite.run()
    assert status == 0, said


def test_the_version_can_be_chosen_and_one_that_is_not_there_is_one_error(suite: Suite) -> None:
    suite.write(
        """
        async def test_it(guarded_pool):
            assert (await guarded_pool.fetchval("SHOW server_version")).startswith("16.")

        def test_other():
            pass
        """
    )
    status, said = suite.run("--postgres-version=16")
    assert status == 0, said
    status, said = suite.run("--postgres-version=9")
    assert "1 passed, 1 error" in said
    assert said.count("No PostgreSQL 9 is available for tests. There are three ways") in {2, 3}  # and in the summary
    assert "Traceback" not in said
    assert len(said.splitlines()) < 25


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_server_of_ones_own_gets_a_database_that_is_gone_afterwards(
    suite: Suite, server: TemporaryPostgres, way: str
) -> None:
    suite.write(
        """
        async def test_it(guarded_pool):
            assert await guarded_pool.fetchval("SELECT name FROM item") == "first"
            assert (await guarded_pool.fetchval("SELECT current_database()")).startswith("asyncdb_guard_")
        """
    )
    listing = "SELECT datname FROM pg_database ORDER BY 1"
    before = server.psql(listing)
    url = server.url()
    if way == "option":
        status, said = suite.run(f"--postgres-url={url}", "-n", "2", "--dist=each")
    else:
        status, said = suite.run(ASYNCDB_GUARD_POSTGRES_URL=url)
    assert status == 0, said
    assert server.psql(listing) == before


def test_what_a_killed_run_has_left_on_a_server_is_swept_up_a_day_later(
    server: TemporaryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = "SELECT count(*) FROM pg_database WHERE datname LIKE 'asyncdb_guard_%'"
    yesterday = time.time() - 90_000
    with monkeypatch.context() as patch:
        patch.setattr(databases.time, "time", lambda: yesterday)
        TemporaryDatabase.start(url=server.url())
    assert server.psql(mine) == "2"
    with TemporaryDatabase.start("CREATE TABLE t (i int)", url=server.url()) as database:
        assert server.psql(mine) == "2"
        name = database.url.rpartition("/")[2]
        assert server.psql("SELECT count(*) FROM t", database=name) == "0"
    assert server.psql(mine) == "0"


def test_a_schema_that_is_wrong_is_told_and_nothing_is_left(server: TemporaryPostgres) -> None:
    for _ in range(2):
        with pytest.raises(Exception, match='relation "missing" does not exist'):
            TemporaryDatabase.start("CREATE TABLE t (); SELECT * FROM missing", url=server.url(), run="same")
    with TemporaryDatabase.start("CREATE TABLE t ()", url=server.url(), run="same"):
        pass
    assert server.psql("SELECT count(*) FROM pg_database WHERE datname LIKE 'asyncdb_guard_%'") == "0"


async def test_a_killed_run_leaves_no_server(suite: Suite, eventually: Eventually) -> None:
    suite.write(
        """
        import os, signal
        def test_it(postgres_url):
            print(postgres_url, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    status, said = suite.run("-s")
    assert status == -signal.SIGKILL
    found = re.search(r"127\.0\.0\.1:(\d+)", said)
    assert found is not None
    port = int(found[1])

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    await eventually(is_gone)


def test_unused_it_imports_nothing_of_ours_and_no_server_is_started(suite: Suite) -> None:
    source = (ROOT / "asyncdb_guard" / "testing" / "plugin.py").read_text()
    (suite.folder / "asyncdb_guard_pytest.py").write_text(source)  # as it is in the wheel
    suite.write(
        """
        import sys
        def test_it():
            ours = sorted(name for name in sys.modules if name.startswith("asyncdb_guard"))
            assert ours == ["asyncdb_guard_pytest"]
            assert "asyncpg" not in sys.modules
        """,
        conftest="",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "asyncdb_guard_pytest", "-p", "no:asyncdb_guard"],
        cwd=suite.folder, env=os.environ | {"PYTHONPATH": str(suite.folder)}, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_fixtures_are_told_in_plain_words(suite: Suite) -> None:
    suite.write("", conftest="")
    _, said = suite.run("--fixtures")
    names = (
        "postgres_schema postgres_url guarded_settings guarded_pool rolled_back_pool open_circuit database_down"
        " lambda_runtime cognito_events manual_clock"
    )
    for name in names.split():
        assert re.search(rf"^{name}.*\n    \S", said, re.MULTILINE), name
