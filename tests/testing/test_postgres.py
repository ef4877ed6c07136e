"""A throw-away PostgreSQL: what it is, how it ends, and what is said where there is none."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import asyncpg
import pytest
import trustme

from asyncdb_guard.testing import Observer, PostgresNotFoundError, TemporaryPostgres, ports
from asyncdb_guard.testing.ports import free_port
from asyncdb_guard.testing.postgres import installation
from asyncdb_guard.testing.postgres import server as server_module
from asyncdb_guard.testing.postgres.installation import Account, Installation
from asyncdb_guard.testing.postgres.server import join
from tests.support.eventually import Eventually

ROOT = Path(__file__).resolve().parents[2]


def dial(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 1.0).close()


async def test_a_server_is_the_version_that_was_asked_for(server: TemporaryPostgres, observer: Observer) -> None:
    assert int(await observer.fetchval("SHOW server_version_num")) // 10000 == server.version


async def test_a_server_listens_on_the_loopback_only(observer: Observer) -> None:
    assert await observer.fetchval("SHOW listen_addresses") == "127.0.0.1"
    assert await observer.fetchval("SHOW unix_socket_directories") == ""


async def test_observers_are_not_counted(url: str, role: str, server: TemporaryPostgres, observer: Observer) -> None:
    connection = await asyncpg.connect(url, server_settings={"application_name": "seen"})
    assert await observer.count(user=role) == 1
    assert [row["application_name"] for row in await server.sessions(user=role)] == ["seen"]
    assert await observer.count("seen", role) == await observer.terminate("seen", role) == 1
    assert await observer.count(user=role) == 0
    await connection.close()


async def test_a_restart_keeps_port_and_data_and_an_observer_survives_it(eventually: Eventually) -> None:
    with TemporaryPostgres.start(16, max_connections=7, settings={"idle_session_timeout": "7s"}) as server:
        observer = Observer(server)
        await observer.execute("CREATE TABLE kept AS SELECT 1 AS one")
        before = server.port, server.postmaster_pid
        server.restart("immediate")
        assert server.port == before[0]
        assert server.postmaster_pid != before[1]
        assert await observer.fetchval("SELECT one FROM kept") == 1
        assert await observer.fetchval("SHOW max_connections") == "7"
        assert await observer.fetchval("SHOW idle_session_timeout") == "7s"
        await observer.close()
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            dial(server.port)
        server.restart()
        os.kill(server.postmaster_pid, signal.SIGKILL)
        server.restart()
        assert server.psql("SELECT one FROM kept") == "1"
    assert not server.data_directory.parent.exists()


async def test_a_password_is_asked_for_where_that_was_chosen() -> None:
    with TemporaryPostgres.start(18, auth="scram-sha-256") as server:
        server.psql("CREATE ROLE app LOGIN PASSWORD 'p@ss word'")
        await (await asyncpg.connect(server.url(user="app", password="p@ss word"))).close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url(user="app", password="wrong"))


def test_a_build_without_tls_says_so() -> None:
    with pytest.raises(RuntimeError, match="no TLS"):
        TemporaryPostgres.start(18, tls=(Path("certificate"), Path("key")))


@pytest.mark.debian
async def test_a_server_with_tls_refuses_plain_connections(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, root = tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "root.crt"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    with TemporaryPostgres.start(source="machine", tls=(certificate, key)) as server:
        await (await asyncpg.connect(server.url(sslmode="verify-full", sslrootcert=str(root)))).close()
        assert await server.sessions() == []
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(server.url(sslmode="disable"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_however_its_owner_ends_a_server_goes_too(end: signal.Signals, eventually: Eventually) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as TemporaryPostgres
server = TemporaryPostgres.start(18)
print(server.port, server.data_directory, flush=True)
signal.pause()
"""
    owner = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with owner:
        assert owner.stdout is not None
        port, directory = owner.stdout.readline().split()
        dial(int(port))
        owner.send_signal(end)
    await eventually(lambda: not Path(directory).parent.exists(), but="the server's directory is gone")
    with pytest.raises(ConnectionRefusedError):
        dial(int(port))


def test_the_newest_of_the_wheel_is_taken_unless_another_is_asked_for() -> None:
    assert Installation.find().version == 18
    assert Installation.find(16).label.startswith("16-wheel")


def test_where_there_is_none_one_error_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PostgresNotFoundError, match=r"^No PostgreSQL 9 is available") as failure:
        TemporaryPostgres.start(9)
    for way in ("pip install 'asyncdb-guard[testing]'", "server on this machine", "ASYNCDB_GUARD_POSTGRES_URL"):
        assert way in str(failure.value)
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    monkeypatch.setattr(installation, "PLACES", ())
    monkeypatch.setenv("PATH", "")
    installation._on_machine.cache_clear()
    with pytest.raises(PostgresNotFoundError, match=r"^No PostgreSQL is available"):
        Installation.find()
    with pytest.raises(PostgresNotFoundError, match=r"^No PostgreSQL of the machine is available"):
        Installation.find(source="machine")
    installation._on_machine.cache_clear()


def test_programs_on_the_machine_are_found_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Installation.find(16)
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    monkeypatch.setattr(installation, "PLACES", ("/usr/bin",))  # where no server's programs are
    monkeypatch.setenv("PATH", str(wheel.programs), prepend=os.pathsep)
    installation._on_machine.cache_clear()
    with TemporaryPostgres.start() as server:
        assert server.version == 16
        assert server.psql("SELECT 1") == "1"
    installation._on_machine.cache_clear()


async def test_a_server_that_others_have_joined_lives_until_the_last_of_them_is_gone(eventually: Eventually) -> None:
    server = TemporaryPostgres.start(18)
    directory = server.data_directory.parent
    joined = join(directory)
    server.leave()
    server.leave()
    assert server.psql("SELECT 1") == "1"
    os.close(joined)
    await eventually(lambda: not directory.exists())
    with pytest.raises(FileNotFoundError):
        join(directory)
    server.close()


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    directory = Account.current().temporary_root() / f"asyncdb-guard-{uuid.uuid4().hex}"
    with pytest.raises(RuntimeError, match="no_such_setting"):
        TemporaryPostgres.start(18, directory=directory, settings={"no_such_setting": "1"})
    assert not directory.exists()
    with pytest.raises(RuntimeError, match="was never started"):
        TemporaryPostgres(Installation.find(), tmp_path, 1, tls=False).stop()


def test_a_port_that_somebody_took_is_given_up_before_the_first_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        numbers = iter([somebody.getsockname()[1], free_port(), free_port()])
        monkeypatch.setattr(server_module, "free_port", lambda: next(numbers))
        with TemporaryPostgres.start(18) as server:
            server.stop()
            with socket.create_server(("127.0.0.1", server.port)), pytest.raises(RuntimeError, match="in use"):
                server.restart(timeout=0.5)


async def test_what_a_server_says_of_itself(server: TemporaryPostgres, observer: Observer) -> None:
    assert repr(server) == f"<TemporaryPostgres {server.version} on 127.0.0.1:{server.port}>"
    with pytest.raises(RuntimeError, match='relation "missing" does not exist'):
        server.psql("SELECT * FROM missing")
    assert [tuple(row) for row in await observer.fetch("SELECT 1")] == [(1,)]


def test_a_server_that_does_not_answer_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TemporaryPostgres.start(18)
    with monkeypatch.context() as patch:
        patch.setattr(server, "_is_ready", lambda: False)
        with pytest.raises(RuntimeError, match=r"was not ready within 0\.02 s"):
            server.wait_ready(0.02)
    monkeypatch.setattr(server_module, "_QUIT_TIMEOUT", 0.05)
    os.kill(server.postmaster_pid, signal.SIGSTOP)
    server.close()
    assert not server.data_directory.exists()


def test_root_runs_it_as_nobody_and_others_as_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        assert Account.current().uid == pwd.getpwnam("nobody").pw_uid
        patch.setattr(os, "geteuid", lambda: 4711)
        assert Account.current().uid == 4711
    us, other = Account(os.geteuid(), os.getegid()), Account(4711, 4711)
    assert "user" not in us.process_options()
    assert other.process_options()["user"] == 4711
    tmp_path.chmod(0o700)
    assert us.can_enter(tmp_path)
    assert not other.can_enter(tmp_path)
    owned: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda *arguments: owned.append(arguments))
    us.own(tmp_path)
    other.own(tmp_path)
    assert owned == [(tmp_path, 4711, 4711)]
    with pytest.raises(RuntimeError, match="false failed with exit code 1"):
        us.run("false")


def test_a_wheel_in_a_closed_place_is_copied_and_its_template_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Path(tempfile.mkdtemp(prefix="asyncdb-guard-test-"))
    elsewhere.chmod(0o755)
    may_enter = Account.can_enter
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(
        Account, "can_enter", lambda self, place: "pixeltable" not in str(place) and may_enter(self, place)
    )
    installation._from_wheel.cache_clear()
    try:
        for _ in range(2):
            with TemporaryPostgres.start(18) as server:
                assert str(server._installation.programs).startswith(str(elsewhere))
                assert server.psql("SELECT 1") == "1"
            installation._from_wheel.cache_clear()
        (shared,) = (path for path in elsewhere.iterdir() if path.name.startswith("asyncdb-guard-"))
        assert (shared / f"template-{server._installation.label}" / "PG_VERSION").exists()
        shared.rename(elsewhere / "moved")
        shared.symlink_to(elsewhere / "moved")
        with pytest.raises(RuntimeError, match="belongs to somebody else"):
            TemporaryPostgres.start(18)
    finally:
        installation._from_wheel.cache_clear()
        shutil.rmtree(elsewhere)


def test_a_machine_without_a_free_port_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        monkeypatch.setattr(ports._choose, "randrange", lambda *_: port)
        with pytest.raises(RuntimeError, match="No free port"):
            free_port()
