"""The real parts that the other tests stand on do what those tests believe."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import trustme

from examples.harness.environment import PORTABLE
from examples.harness.observer import Observer
from examples.harness.postgres import Cluster
from examples.harness.runtime_api import EnvironmentFailed, RuntimeApi
from tests.support.eventually import Eventually
from tests.support.proxy import TcpProxy
from tests.support.wire import FrontendReader

RESET = (ConnectionResetError, asyncpg.ConnectionDoesNotExistError)
"""What asyncpg makes of a reset while it connects depends on when it notices."""

ROOT = Path(__file__).resolve().parent.parent


def dial(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 1.0).close()


# The cluster


async def test_a_cluster_is_the_version_that_was_asked_for(server: Cluster, observer: Observer) -> None:
    assert int(await observer.fetchval("SHOW server_version_num")) // 10000 == server.version


async def test_a_cluster_listens_on_the_loopback_only(observer: Observer) -> None:
    assert await observer.fetchval("SHOW listen_addresses") == "127.0.0.1"
    assert await observer.fetchval("SHOW unix_socket_directories") == ""


async def test_observers_are_not_counted(url: str, role: str, server: Cluster, observer: Observer) -> None:
    connection = await asyncpg.connect(url, server_settings={"application_name": "seen"})
    assert await observer.count(user=role) == 1
    assert [row["application_name"] for row in await server.sessions(user=role)] == ["seen"]
    assert await observer.count("seen", role) == await observer.terminate("seen", role) == 1
    assert await observer.count(user=role) == 0
    await connection.close()


async def test_a_restart_keeps_port_and_data_and_an_observer_survives_it(eventually: Eventually) -> None:
    with Cluster.start(16, max_connections=7, settings={"idle_session_timeout": "7s"}) as server:
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
    with Cluster.start(18, auth="scram-sha-256") as server:
        server.psql("CREATE ROLE app LOGIN PASSWORD 'p@ss word'")
        await (await asyncpg.connect(server.url(user="app", password="p@ss word"))).close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url(user="app", password="wrong"))


def test_a_build_without_tls_says_so() -> None:
    with pytest.raises(RuntimeError, match="no TLS"):
        Cluster.start(18, tls=(Path("certificate"), Path("key")))


@pytest.mark.debian
async def test_a_cluster_with_tls_refuses_plain_connections(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, root = tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "root.crt"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    with Cluster.start("debian", tls=(certificate, key)) as server:
        await (await asyncpg.connect(server.url(sslmode="verify-full", sslrootcert=str(root)))).close()
        assert await server.sessions() == []
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(server.url(sslmode="disable"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_however_its_owner_ends_a_cluster_goes_too(end: signal.Signals, eventually: Eventually) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from examples.harness.postgres import Cluster
server = Cluster.start(18)
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
    await eventually(lambda: not Path(directory).parent.exists(), but="the cluster's directory is gone")
    with pytest.raises(ConnectionRefusedError):
        dial(int(port))


# The proxy


async def test_the_proxy_reads_along_and_counts_round_trips(url_via_tcp_proxy: str, role: str, proxy: TcpProxy) -> None:
    connection = await asyncpg.connect(url_via_tcp_proxy, ssl=False, server_settings={"application_name": "read"})
    assert (proxy.accepted, proxy.open_connections, proxy.open_server_connections) == (1, 1, 1)
    assert proxy.startups == [
        {"client_encoding": "'utf-8'", "user": role, "database": "postgres", "application_name": "read"}
    ]
    before = proxy.round_trips
    await connection.execute("SELECT 1")
    assert proxy.round_trips == before + 1
    await connection.fetchval("SELECT $1::int", 1)
    assert proxy.round_trips == before + 3
    await connection.fetchval("SELECT $1::int", 1)
    assert proxy.round_trips == before + 4
    assert proxy.statements == ["SELECT 1", "SELECT $1::int"]
    assert proxy.client_messages == [b"Q", b"P", b"D", b"H", b"B", b"E", b"S", b"B", b"E", b"S"]
    assert proxy.client_bytes > 0 < proxy.server_bytes
    assert proxy.tls_requests == proxy.cancel_requests == 0
    await connection.close()
    assert proxy.client_messages[-1] == b"X"


async def test_the_proxy_sees_requests_for_tls_and_cancellations(
    url_via_tcp_proxy: str, proxy: TcpProxy, eventually: Eventually
) -> None:
    connection = await asyncpg.connect(url_via_tcp_proxy, ssl="prefer")
    assert proxy.tls_requests == 1
    with pytest.raises(TimeoutError):
        await connection.execute("SELECT pg_sleep(60)", timeout=0.05)
    await eventually(lambda: proxy.cancel_requests == 1)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_latency_counts_both_ways(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    connection = await asyncpg.connect(url_via_tcp_proxy)
    proxy.latency = 0.03
    began = time.monotonic()
    assert await connection.fetchval("SELECT 1") == 1
    assert time.monotonic() - began >= 0.12  # Parse, then Execute.
    proxy.latency = 0.0
    await connection.close()


async def test_a_deaf_path_loses_everything_and_the_server_never_learns(
    url_via_tcp_proxy: str, proxy: TcpProxy, role: str, observer: Observer, eventually: Eventually
) -> None:
    connection = await asyncpg.connect(url_via_tcp_proxy)
    proxy.deaf = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.fetchval("SELECT 1"), 0.05)
    with pytest.raises(TimeoutError):
        await asyncpg.connect(url_via_tcp_proxy, timeout=0.05)
    assert proxy.accepted >= 2  # The request to cancel the first statement came on a connection of its own.
    connection.terminate()
    await eventually(lambda: proxy.open_connections == 0)
    assert proxy.open_server_connections == await observer.count(user=role) == 1
    proxy.deaf = False
    await (await asyncpg.connect(url_via_tcp_proxy)).close()
    assert await observer.count(user=role) >= 1


async def test_reset_and_drop_end_both_sides(
    url_via_tcp_proxy: str, proxy: TcpProxy, role: str, observer: Observer, eventually: Eventually
) -> None:
    for end in (proxy.reset_all, proxy.drop_all):
        connection = await asyncpg.connect(url_via_tcp_proxy)
        end()
        with pytest.raises((OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")
        await connection.close()

        async def nobody() -> bool:
            return await observer.count(user=role) == 0

        await eventually(nobody, but="the server has no session left")
        assert proxy.open_connections == proxy.open_server_connections == 0


async def test_ways_not_to_answer_a_new_connection(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    proxy.refuse = True
    with pytest.raises(RESET):
        await asyncpg.connect(url_via_tcp_proxy, ssl=False)
    proxy.refuse = False
    proxy.hang = True
    with pytest.raises(TimeoutError):
        await asyncpg.connect(url_via_tcp_proxy, timeout=0.05)
    proxy.hang = False
    assert proxy.accepted == 2
    await proxy.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(url_via_tcp_proxy)
    await proxy.listen_again()
    await (await asyncpg.connect(url_via_tcp_proxy, ssl=False)).close()
    assert proxy.accepted == 3


async def test_a_proxy_to_nowhere_resets(eventually: Eventually) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with TcpProxy(*nobody.getsockname()) as proxy:
            with pytest.raises(RESET):
                await asyncpg.connect(host=proxy.host, port=proxy.port, user="nobody", ssl=False)


def test_the_proxy_works_while_no_loop_runs(proxy: TcpProxy) -> None:
    with socket.create_connection((proxy.host, proxy.port), 5.0) as client:
        client.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
        assert client.recv(1) == b"N"
    assert proxy.tls_requests == 1


def test_messages_are_read_from_any_pieces() -> None:
    stream = (
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
        b"\x00\x00\x00\x14\x00\x03\x00\x00user\x00me\x00x\x00\x00\x00"
        b"Q\x00\x00\x00\x0dSELECT 1\x00X\x00\x00\x00\x04"
    )
    reader = FrontendReader()
    for byte in stream:
        reader.feed(bytes([byte]))
    assert reader.asked_for_tls
    assert reader.startup == {"user": "me", "x": ""}
    assert reader.messages == [b"Q", b"X"]
    assert reader.statements == ["SELECT 1"]


# The Lambda runtime

HANDLER = """
import os, signal, time

def handler(event, context):
    print("said", context.function_name)
    match event:
        case {"fail": text}:
            raise ValueError(text)
        case {"exit": code}:
            os._exit(code)
        case {"fork": True}:
            child = os.fork()
            if child == 0:
                time.sleep(3600)
            return child
        case {"ignore": True}:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case {"sleep": seconds}:
            time.sleep(seconds)
    return {"event": event, "left": context.get_remaining_time_in_millis(), "given": os.environ.get("GIVEN")}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(HANDLER)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    return tmp_path


def test_an_environment_answers_one_event_after_the_other(runtime_api: RuntimeApi, code: Path) -> None:
    with runtime_api.environment("app.handler", cwd=code, env={"GIVEN": "yes"}) as environment:
        first = environment.invoke({"n": 1}, timeout_ms=5000)
        assert first.error is None
        assert first.payload["event"] == {"n": 1}
        assert first.payload["given"] == "yes"
        assert 3000 < first.payload["left"] <= 5000
        failed = environment.invoke({"fail": "so"})
        assert failed.payload is None
        assert failed.error is not None
        assert (failed.error["errorType"], failed.error["errorMessage"]) == ("ValueError", "so")
        large = "x" * 300_000
        assert environment.invoke({"large": large}).payload["event"]["large"] == large
        assert "said asyncdb-guard" in environment.stdout
    assert environment.returncode is not None


def test_awslambdaric_works_where_its_native_part_was_not_built(runtime_api: RuntimeApi, code: Path) -> None:
    (code / "which.py").write_text("import runtime_client\nfrom app import handler\nprint(runtime_client.__file__)")
    paths = os.pathsep.join((str(code), str(PORTABLE)))
    with runtime_api.environment("which.handler", cwd=code, env={"PYTHONPATH": paths}) as environment:
        assert environment.invoke({"n": 1}).payload["event"] == {"n": 1}
        failed = environment.invoke({"fail": "so"})
        assert failed.error is not None
        assert (failed.error["errorType"], failed.error["errorMessage"]) == ("ValueError", "so")
        assert str(PORTABLE) in environment.stdout
    assert environment.returncode == 1


def test_a_handler_that_cannot_be_imported_is_told(runtime_api: RuntimeApi, code: Path) -> None:
    environment = runtime_api.environment("broken.handler", cwd=code)
    with pytest.raises(EnvironmentFailed, match="nothing_of_that_name"):
        environment.invoke({})
    with pytest.raises(EnvironmentFailed, match="nothing_of_that_name"):
        environment.wait_ready()


def test_a_process_that_ends_is_told(runtime_api: RuntimeApi, code: Path) -> None:
    environment = runtime_api.environment("app.handler", cwd=code)
    with pytest.raises(EnvironmentFailed, match="exit code 3"):
        environment.invoke({"exit": 3})
    assert environment.returncode == 3


def test_a_frozen_process_answers_when_it_thaws(runtime_api: RuntimeApi, code: Path) -> None:
    environment = runtime_api.environment("app.handler", cwd=code)
    environment.wait_ready()
    environment.freeze()
    answer = environment.submit({"n": 1})
    with pytest.raises(TimeoutError):
        answer.result(0.1)
    environment.thaw()
    assert answer.result(5.0).payload["event"] == {"n": 1}


def test_a_process_can_be_asked_or_made_to_end(runtime_api: RuntimeApi, code: Path) -> None:
    asked, stubborn = (runtime_api.environment("app.handler", cwd=code) for _ in range(2))
    asked.wait_ready()
    assert asked.terminate() < 2.0
    assert asked.returncode == -signal.SIGTERM
    stubborn.invoke({"ignore": True})
    assert stubborn.terminate(grace=0.1) >= 0.1
    assert stubborn.returncode == -signal.SIGKILL


async def test_children_of_a_process_end_with_it(runtime_api: RuntimeApi, code: Path, eventually: Eventually) -> None:
    environment = runtime_api.environment("app.handler", cwd=code)
    child = environment.invoke({"fork": True}).payload
    assert is_running(child)
    environment.close()
    await eventually(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_fleet_is_closed_together(code: Path) -> None:
    with RuntimeApi.start() as api:
        fleet = [api.environment("app.handler", cwd=code) for _ in range(8)]
        answers = [environment.submit({"n": number}) for number, environment in enumerate(fleet)]
        assert [answer.result(20.0).payload["event"]["n"] for answer in answers] == list(range(8))
        busy = fleet[0].submit({"sleep": 60})
        pids = [environment.pid for environment in fleet]
    assert isinstance(busy.exception(), EnvironmentFailed)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# Waiting


async def test_eventually_tells_what_it_saw(eventually: Eventually) -> None:
    assert await eventually(lambda: 3) == 3
    with pytest.raises(AssertionError, match=r"Not within 0\.02 s: the moon is full\nLast seen: 0"):
        await eventually(lambda: 0, within=0.02, but="the moon is full")


def test_no_setting_comes_from_outside() -> None:
    assert not [name for name in os.environ if name.startswith(("LAMBDA_DATABASE_", "PG", "AWS_"))]
