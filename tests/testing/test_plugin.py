"""The pytest plugin, from outside: suites of strangers, each run by a pytest of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from asyncdb_guard.testing import (
    PostgresUrlError,
    TemporaryDatabase,
    TemporaryPostgres,
    fixtures,
    plugin,
)
from asyncdb_guard.testing.postgres import databases
from tests.support.eventually import Eventually
from tests.support.program import unmeasured

assert fixtures  # imported here, as pytester forgets what was first imported in a run

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


WITHOUT = tuple(
    f"-pno:{name}"
    for name in ("asyncdb_guard", "cacheprovider", "faulthandler", "hypothesispytest", "rerunfailures", "timeout")
)
"""Plugins that a run does without, as each takes time. Ours is given to it as it is in this checkout."""


class Suite:
    """A folder with somebody's tests."""

    def __init__(self, pytester: pytest.Pytester, ini: str | None = INI) -> None:
        self.folder = pytester.path
        self._pytester = pytester
        if ini is not None:
            (self.folder / "pytest.ini").write_text(ini)

    def write(self, tests: str, conftest: str = CONFTEST) -> None:
        (self.folder / "conftest.py").write_text(conftest)
        (self.folder / "test_it.py").write_text(textwrap.dedent(tests))

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and all that was said. In this process, which takes a tenth of the time."""
        done = self._pytester.runpytest_inprocess(*WITHOUT, "-pno:xdist", *arguments, plugins=[plugin])
        return int(done.ret), done.stdout.str() + done.stderr.str()

    def run_alone(self, *arguments: str) -> tuple[int, str]:
        """The same, in a process of its own."""
        command = [sys.executable, "-m", "pytest", *WITHOUT, *arguments]
        done = subprocess.run(
            [*command, "-p", "asyncdb_guard.testing.plugin"],
            cwd=self.folder, env=unmeasured(PYTHONPATH=str(ROOT)),
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    for name in ("CI", "BUILD_NUMBER"):  # pytest would show each error once more, in its summary
        monkeypatch.delenv(name, raising=False)
    return Suite(pytester)


@pytest.mark.parametrize("loop", [(), SESSION_LOOP, ("-n", "2")], ids=["function", "session", "xdist"])
def test_a_suite_leaves_its_database_and_the_server_as_they_were(
    suite: Suite, server: TemporaryPostgres, loop: tuple[str, ...]
) -> None:
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

        async def test_place(guarded_pool, request, tmp_path_factory):
            oid = await guarded_pool.fetchval("SELECT oid FROM pg_database WHERE datname LIKE 'asyncdb%template'")
            worker = getattr(request.config, "workerinput", {}).get("workerid", "main")
            seen = tmp_path_factory.getbasetemp().parent / f"seen-{worker}"
            seen.write_text(f"{oid} {await guarded_pool.fetchval('SELECT current_database()')}")
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
    listing = "SELECT datname FROM pg_database ORDER BY 1"
    before = server.psql(listing)
    workers = 2 if loop == ("-n", "2") else 1
    run, more = (suite.run, ()) if workers == 1 else (suite.run_alone, ("--dist=each",))
    base = suite.folder / "base"
    base.mkdir()
    status, said = run(f"--postgres-url={server.url()}", f"--basetemp={base / 'it'}", *loop, *more)
    assert status == 0, said
    assert f"{10 * workers} passed" in said
    places = [path.read_text().split() for path in base.rglob("seen-*")]
    assert len({template for template, _ in places}) == 1, "one template for the run"
    assert len({database for _, database in places}) == workers, "each process has a database of its own"
    assert all(database.startswith("asyncdb_guard_") for _, database in places)
    assert server.psql(listing) == before


def test_a_borrow_that_was_left_open_is_told_with_its_place_and_the_suite_goes_on(
    suite: Suite, server: TemporaryPostgres
) -> None:
    suite.write(
        """
        import pytest

        async def test_guarded(guarded_pool):
            await guarded_pool.acquire().__aenter__()

        async def test_rolled_back(rolled_back_pool):
            await rolled_back_pool.acquire().__aenter__()

        @pytest.fixture(params=["guarded_pool", "rolled_back_pool"])
        def pool(request):
            return request.getfixturevalue(request.param)

        async def test_awaited(pool):
            await pool.acquire()

        async def test_transaction(pool):
            await pool.transaction().__aenter__()

        @pytest.fixture
        async def taken(pool):
            yield await pool.acquire()

        async def test_fixture(taken):
            pass

        async def test_next(guarded_pool, rolled_back_pool):
            assert await guarded_pool.fetchval("SELECT name FROM item") == "first"
            assert await rolled_back_pool.fetchval("SELECT name FROM item") == "first"
        """
    )
    for loop in ((), SESSION_LOOP):
        status, said = suite.run(f"--postgres-url={server.url()}", *loop)
        assert status == 1
        assert "9 passed, 8 errors" in said, said
        assert said.count("Borrowed at: test_it.py:5 in test_guarded.") == 1
        assert said.count("Borrowed at: test_it.py:8 in test_rolled_back.") == 1
        assert said.count("Borrowed at: test_it.py:15 in test_awaited.") == 2
        assert said.count("Borrowed at: test_it.py:18 in test_transaction.") == 2
        assert said.count("Borrowed at: test_it.py:22 in taken.") == 2


SCOPES = """
import pytest

async def use(pool):
    assert await pool.fetchval("INSERT INTO item (name) VALUES ('x') RETURNING id") == 2

class TestScope:
    pytestmark = pytest.mark.asyncio(loop_scope="SCOPE")

    async def test_one(self, rolled_back_pool):
        await use(rolled_back_pool)

    async def test_two(self, rolled_back_pool, guarded_pool):
        await use(rolled_back_pool)
        await guarded_pool.ping()

    async def test_function(self, guarded_pool):
        await guarded_pool.ping()
"""


def test_every_scope_of_a_loop_will_do_in_one_suite_in_strict_mode_too(suite: Suite, server: TemporaryPostgres) -> None:
    suite.write(
        """
        import asyncio, unittest

        def test_no_loop_of_pytests(rolled_back_pool, guarded_pool):
            async def use():
                assert await rolled_back_pool.fetchval("INSERT INTO item (name) VALUES ('x') RETURNING id") == 2
            asyncio.run(use())
            # what that loop has left is gone: nobody holds a lock
            asyncio.run(guarded_pool.execute("LOCK TABLE item; TRUNCATE item; INSERT INTO item VALUES (1, 'first')"))
        """
    )
    for scope in ("function", "class", "module", "package", "session"):
        (suite.folder / f"test_{scope}.py").write_text(SCOPES.replace("SCOPE", scope))
    status, said = suite.run(f"--postgres-url={server.url()}", "-o", "asyncio_mode=strict", "-Werror")
    assert status == 0, said
    assert "16 passed" in said


def test_settings_can_be_overridden_and_are_nobody_elses(
    suite: Suite, server: TemporaryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.write(
        """
        import pytest
        from asyncdb_guard import ConnectFailedError

        @pytest.fixture(params=["1", "2"])
        def environment(request, monkeypatch):
            monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", request.param)
            return int(request.param)

        async def test_environment(environment, guarded_pool):
            assert guarded_pool.settings.pool_max == environment

        async def test_down(guarded_pool, rolled_back_pool, database_down):
            with database_down(guarded_pool):
                with pytest.raises(ConnectFailedError):
                    await guarded_pool.ping()
                await rolled_back_pool.ping()
        """
    )
    (suite.folder / "test_overridden.py").write_text(
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
    (suite.folder / "test_without_a_url.py").write_text(
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
    monkeypatch.setenv("ASYNCDB_GUARD_POSTGRES_URL", server.url())
    status, said = suite.run(*SESSION_LOOP)
    assert status == 0, said
    assert "7 passed" in said


def test_the_version_can_be_chosen_and_one_that_is_not_there_is_one_error(suite: Suite) -> None:
    suite.write(
        """
        async def test_it(guarded_pool):
            assert (await guarded_pool.fetchval("SHOW server_version")).startswith("16.")
            assert await guarded_pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0

        def test_other():
            pass
        """,
        conftest="",
    )
    status, said = suite.run("--postgres-version=16")
    assert status == 0, said
    status, said = suite.run("--postgres-version=9")
    assert "1 passed, 1 error" in said
    before_the_summary = said.partition("short test summary")[0]
    assert before_the_summary.count("No PostgreSQL 9 is available for tests. There are three ways") == 1
    assert "Traceback" not in said
    assert len(said.splitlines()) < 25


def test_a_server_that_cannot_be_used_is_one_error_with_the_remedy() -> None:
    with TemporaryPostgres.start(18, auth="scram-sha-256") as server:
        server.psql("CREATE ROLE poor LOGIN PASSWORD 'secret'; CREATE ROLE rich LOGIN PASSWORD 'secret' CREATEDB")
        rich = server.url(user="rich", password="secret")
        for url, said in (
            (server.url(user="poor", password="secret"), "does not let this role create databases.* ALTER ROLE"),
            (server.url(user="rich", password="wrong"), r"refused the login \(28P01\)"),
            (server.url("missing", user="rich", password="secret"), "does not have the database"),
            (f"{rich}?no_such_parameter=1", r"refused the connection \(42704\)"),
            ("postgresql://rich:secret@127.0.0.1:1/postgres", "does not answer"),
            ("mysql://rich:secret@127.0.0.1/mysql", "not one of PostgreSQL"),
        ):
            with pytest.raises(PostgresUrlError, match=said) as failure:
                TemporaryDatabase.start(url=url)
            assert "--postgres-url" in str(failure.value)
            assert failure.value.__context__ is None
            for secret in ("secret", "wrong", "127.0.0.1", "rich", "poor", "missing"):
                assert secret not in str(failure.value)
        with pytest.raises(PostgresUrlError, match="is PostgreSQL 18, and --postgres-version asks for 16"):
            TemporaryDatabase.start(url=rich, version=16)
        with TemporaryDatabase.start(url=rich, version=18) as database:
            assert database.url.startswith("postgresql://rich:secret@")


def test_the_url_of_a_unix_socket_stays_one() -> None:
    url = "postgresql://me@/postgres?host=/var/run/postgresql"
    assert databases._with_database(url, "mine") == "postgresql://me@/mine?host=/var/run/postgresql"


def test_an_unusable_server_fails_those_who_ask_for_it(suite: Suite) -> None:
    suite.write("def test_it(postgres_url): pass\ndef test_other(): pass")
    _, said = suite.run("--postgres-url=postgresql://u@127.0.0.1:1/d")
    assert "1 passed, 1 error" in said
    before_the_summary = said.partition("short test summary")[0]
    assert before_the_summary.count("The server of --postgres-url cannot be used for tests: it does not answer") == 1
    assert len(said.splitlines()) < 20


def test_what_a_killed_run_has_left_on_a_server_is_swept_up_a_day_later(
    server: TemporaryPostgres, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = "SELECT count(*) FROM pg_database WHERE datname LIKE 'asyncdb_guard_%'"
    yesterday = time.time() - 90_000
    with monkeypatch.context() as patch:
        patch.setattr(databases.time, "time", lambda: yesterday)
        TemporaryDatabase.start(url=server.url())
    assert server.psql(mine) == "2"
    server.psql(f"CREATE ROLE other_{role} LOGIN CREATEDB")
    with TemporaryDatabase.start(url=server.url(user=f"other_{role}")):
        assert server.psql(mine) == "4", "what another role has left stays"
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


@pytest.mark.parametrize("foreign", [False, True], ids=["throw-away", "foreign"])
async def test_the_processes_of_a_run_share_server_and_template(
    server: TemporaryPostgres, foreign: bool, eventually: Eventually
) -> None:
    given = server.url() if foreign else None
    listing = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"
    before = server.psql(listing)
    run = uuid.uuid4().hex
    start = partial(TemporaryDatabase.start, url=given, run=run)
    with start("CREATE TABLE t (i int)", process="second") as second:
        with start("this is run by the first one only", process="first") as first:
            assert first.url.rpartition("/")[0] == second.url.rpartition("/")[0]
            assert first.url != second.url
        assert await tables(second.url) == ["t"]
    assert server.psql(listing) == before
    if not foreign:
        await eventually(lambda: is_gone(second.url), but="the throw-away server has ended")


def is_gone(url: str) -> bool:
    """Whether nobody listens any more where the URL leads to."""
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname or "", address.port or 0)) != 0


async def tables(url: str) -> list[str]:
    """The names of the tables in the schema public."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return [row["tablename"] for row in rows]


async def test_a_killed_run_leaves_no_server(suite: Suite, eventually: Eventually) -> None:
    suite.write(
        """
        import os, signal
        def test_it(postgres_url):
            print(postgres_url, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    status, said = suite.run_alone("-s")
    assert status == -signal.SIGKILL
    found = re.search(r"postgresql://\S+", said)
    assert found is not None
    await eventually(lambda: is_gone(found[0]))


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
        cwd=suite.folder, env=unmeasured(PYTHONPATH=str(suite.folder)), capture_output=True, text=True,
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
