"""What every test may ask for: a server, a role and a URL of its own, a proxy, somebody who looks on."""

from __future__ import annotations

import asyncio
import inspect
import os
import uuid
from typing import TYPE_CHECKING

import coverage
import hypothesis
import pytest
import trustme

from asyncdb_guard.testing import ManualClock
from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
from asyncdb_guard.testing.postgres.observer import Observer
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.support import eventually as waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytest_plugins = ["pytester"]

SERVERS = (16, 18)
_OURS = ("LAMBDA_DATABASE_", "PG", "AWS_", "POWERTOOLS_", "_X_AMZN")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", help="run on one PostgreSQL only, 16 or 18", type=int, choices=SERVERS)
    parser.addoption("--thorough", help="take the time for long soaks and thousands of examples", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("thorough")
    if config.getoption("--thorough"):
        hypothesis.settings.load_profile("thorough")


def pytest_sessionfinish() -> None:
    """Keep what was measured so far: pytest-xdist kills a worker that takes 10 s to exit."""
    measurement = coverage.Coverage.current()
    if measurement is not None:
        measurement.save()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--server")
        servers = SERVERS if chosen is None else (chosen,)
        metafunc.parametrize("server", servers, ids=lambda version: f"pg{version}", indirect=True, scope="session")


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether there is time: in CI, on one Python, or with `--thorough`."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A PostgreSQL for the whole session; tests that stop or fill one start a `Cluster` of their own."""
    with Cluster.start(request.param) as cluster:
        yield cluster


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[Cluster, str]]:
    """A server that speaks TLS, Debian's, and the file of its CA; the wheel's is built without."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    with Cluster.start(source="machine", tls=(tmp_path / "server.crt", tmp_path / "server.key")) as server:
        yield server, str(tmp_path / "ca.crt")


@pytest.fixture
def role(server: Cluster) -> str:
    """A new role without a password, with a schema of its own; its sessions are this test's sessions."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server.psql(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA {name} AUTHORIZATION {name};")
    return name


@pytest.fixture
def url(server: Cluster, role: str) -> str:
    """Straight to the server, as `role`."""
    return server.url(user=role)


@pytest.fixture
def proxy(server: Cluster) -> Iterator[TcpProxy]:
    """A proxy in front of the server."""
    with TcpProxy(server.host, server.port) as proxy:
        yield proxy


@pytest.fixture
def url_via_tcp_proxy(server: Cluster, role: str, proxy: TcpProxy) -> str:
    """To the server through `proxy`, as `role`."""
    return server.url(user=role, port=proxy.port)


@pytest.fixture
async def observer(server: Cluster) -> AsyncIterator[Observer]:
    """Looks at the server, and is not counted."""
    observer = Observer(server)
    yield observer
    await observer.close()


@pytest.fixture
def runtime_api() -> Iterator[RuntimeApi]:
    """Starts real Lambda runtime processes, and ends them."""
    with RuntimeApi.start() as api:
        yield api


@pytest.fixture
def eventually() -> waiting.Eventually:
    """`await eventually(lambda: proxy.accepted == 1)`."""
    return waiting.eventually


@pytest.fixture
def later() -> Iterator[Callable[[float], None]]:
    """`later(10)` puts the pool's clocks ahead by so many seconds more, in place of a sleep."""
    with ManualClock() as clock:
        yield clock.advance


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting reaches a test from outside."""
    for name in tuple(os.environ):
        if name == "DATABASE_URL" or name.startswith(_OURS):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_task_left(request: pytest.FixtureRequest) -> None:
    """After an async test and its fixtures, nothing of it still runs in its loop."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_left")


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    own = asyncio.current_task()
    yield
    ignored = {own, asyncio.current_task()}
    await waiting.eventually(lambda: not (asyncio.all_tasks() - ignored), within=1.0, but="no task is left")
