"""The TCP proxy: what it does to connections, and what it counts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import asyncpg
import pytest

from asyncdb_guard.testing import Observer, TcpProxy, TemporaryPostgres
from asyncdb_guard.testing.ports import free_port
from asyncdb_guard.testing.tcp_proxy import proxy as proxy_module
from asyncdb_guard.testing.tcp_proxy.wire import FrontendReader
from tests.support.eventually import Eventually

RESET = (ConnectionResetError, asyncpg.ConnectionDoesNotExistError)
"""What asyncpg makes of a reset while it connects depends on when it notices."""


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


async def test_a_proxy_is_put_in_front_of_a_urls_server(url: str, role: str) -> None:
    async with TcpProxy.to(url) as proxy:
        via = proxy.url(f"{url}?application_name=via")
        connection = await asyncpg.connect(via)
        assert await connection.fetchval("SHOW application_name") == "via"
        assert await connection.fetchval("SELECT current_user") == role
        proxy.go_deaf()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.05)
        connection.terminate()
        assert proxy.url("postgresql:///d") == f"postgresql://127.0.0.1:{proxy.port}/d"
    assert TcpProxy.to("postgresql:///d").target == ("127.0.0.1", 5432)


async def test_a_port_that_somebody_took_is_given_up(
    server: TemporaryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken = somebody.getsockname()[1]
        numbers = iter([taken, free_port()])
        monkeypatch.setattr(proxy_module, "free_port", lambda: next(numbers))
        with TcpProxy(server.host, server.port) as proxy:
            assert proxy.port != taken
        monkeypatch.setattr(proxy_module, "free_port", lambda: taken)
        unlucky = TcpProxy(server.host, server.port)
        with pytest.raises(OSError, match="in use"):
            unlucky.__enter__()


TLS_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


async def test_what_is_underway_when_the_path_dies_is_lost(proxy: TcpProxy, eventually: Eventually) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.latency = 0.02
    writer.write(TLS_REQUEST)
    await eventually(lambda: proxy.client_bytes == len(TLS_REQUEST), every=0.001)
    proxy.silence_all()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.06)
    assert proxy.server_bytes == 0
    writer.close()
    await writer.wait_closed()


async def test_an_answer_to_a_client_that_has_left_is_dropped(proxy: TcpProxy, eventually: Eventually) -> None:
    _, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.latency = 0.01
    writer.write(TLS_REQUEST)
    await eventually(lambda: proxy.server_bytes == 1, every=0.001)
    proxy.reset_all()
    await asyncio.sleep(0.02)
    assert proxy.open_connections == 0
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_one_that_listens_no_more_can_be_left(server: TemporaryPostgres) -> None:
    async with TcpProxy(server.host, server.port) as proxy:
        await proxy.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)


async def test_named_statements_are_counted_apart(url_via_tcp_proxy: str, proxy: TcpProxy) -> None:
    connection = await asyncpg.connect(url_via_tcp_proxy)
    await connection.prepare("SELECT 1", name="mine")
    await connection.prepare("SELECT 2", name="")
    assert proxy.named_statements == ["mine"]
    await connection.close()


async def test_after_tls_was_granted_nothing_is_read_any_more() -> None:
    async def grant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        assert await reader.readexactly(5) == b"\x16\x03\x01ab"
        writer.write(b"done")
        writer.close()
        await writer.wait_closed()

    async with (
        await asyncio.start_server(grant, "127.0.0.1", 0) as server,
        TcpProxy(*server.sockets[0].getsockname()) as proxy,
    ):
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(TLS_REQUEST)
        assert await reader.readexactly(1) == b"S"
        writer.write(b"\x16\x03\x01ab")
        assert await reader.read() == b"done"
        assert (proxy.tls_requests, proxy.client_messages, proxy.startups) == (1, [], [])
        proxy.reset_all()
        writer.close()
        await writer.wait_closed()


def test_another_protocol_is_left_alone() -> None:
    reader = FrontendReader()
    reader.feed(b"\x00\x00\x00\x01GET / HTTP/1.1")
    reader.feed(b"Host: x")
    assert (reader.messages, reader.startup) == ([], None)
