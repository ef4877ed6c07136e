"""A Unix socket is a way to the server as any other: bounded, reset, found dead, and closed when it was idle."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from asyncdb_guard import ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster


@pytest.fixture(scope="module")
def socket_server() -> Iterator[Cluster]:
    """A PostgreSQL that listens in its data directory, too."""
    with Cluster.start(16, settings={"unix_socket_directories": "."}) as cluster:
        rules = cluster.data_directory / "pg_hba.conf"
        rules.write_text(f"{rules.read_text()}local all all trust\n")
        cluster.psql("SELECT pg_reload_conf()")
        yield cluster


def url(server: Cluster, form: str) -> str:
    directory = quote(str(server.data_directory), safe="")
    return form.format(directory=directory, port=server.port)


FORMS = (
    "postgresql://postgres@/postgres?host={directory}&port={port}",
    "postgresql+asyncpg://postgres@{directory}:{port}/postgres",
)


@pytest.mark.parametrize("form", FORMS)
async def test_a_session_comes_through_the_socket(socket_server: Cluster, form: str) -> None:
    async with GuardedPool(DatabaseSettings(url=url(socket_server, form))) as pool:
        assert await pool.fetchval("SELECT inet_server_addr() IS NULL") is True
        assert await pool.fetchval("SELECT current_setting('idle_session_timeout')") != "0"


async def test_the_kind_of_node_counts_there_as_well(socket_server: Cluster) -> None:
    wanted = f"{url(socket_server, FORMS[0])}&target_session_attrs="
    async with GuardedPool(DatabaseSettings(url=f"{wanted}primary")) as pool:
        await pool.ping()
    async with GuardedPool(DatabaseSettings(url=f"{wanted}standby")) as pool:
        with pytest.raises(ConnectFailedError, match="target_session_attrs in the database URL requires"):
            await pool.ping()


async def test_a_session_that_the_server_ended_is_replaced_unseen(socket_server: Cluster) -> None:
    async with GuardedPool(DatabaseSettings(url=url(socket_server, FORMS[0]), breaker_fail_max=1)) as pool:
        first = await pool.fetchval("SELECT pg_backend_pid()")
        socket_server.psql(f"SELECT pg_terminate_backend({first}, 5000)")
        assert await pool.fetchval("SELECT pg_backend_pid()") != first
        assert pool.stats()["circuit"] == "closed"


async def test_a_socket_that_is_not_there_is_told_as_such() -> None:
    async with GuardedPool(DatabaseSettings(url="postgresql://postgres@/postgres?host=/nowhere")) as pool:
        with pytest.raises(ConnectFailedError, match="nothing listens on its Unix socket") as caught:
            await pool.ping()
    assert "nowhere" not in str(caught.value)


async def test_several_schemas_are_the_search_path(server: Cluster, role: str) -> None:
    async with GuardedPool(DatabaseSettings(url=server.url(user=role, schema=f"{role},public"))) as pool:
        assert await pool.fetchval("SELECT current_schemas(false)") == [role, "public"]
