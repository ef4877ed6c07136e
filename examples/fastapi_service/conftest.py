"""A database of its own, and the service under uvicorn in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asyncdb_guard.testing.ports import free_port
from asyncdb_guard.testing.postgres.server import TemporaryPostgres

HERE = Path(__file__).parent
SCHEMA = """
    CREATE TABLE item (
        id bigint GENERATED ALWAYS AS IDENTITY,
        name text NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED
    )
"""


@pytest.fixture
def database() -> Iterator[TemporaryPostgres]:
    """A PostgreSQL that a test may stop and start."""
    with TemporaryPostgres.start() as server:
        server.psql(SCHEMA)
        yield server


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def service(database: TemporaryPostgres, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The running service; `client` talks to it."""
    variables = {"LAMBDA_DATABASE_URL": database.url(), "LAMBDA_DATABASE_COMMAND_TIMEOUT_MS": "1000"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"],
        cwd=HERE, env=os.environ | variables,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture
def client(service: subprocess.Popen[bytes], port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        until(lambda: client.get("/live").status_code == 200)
        yield client


def until(look: Callable[[], Any], within: float = 15.0) -> None:
    """Look until what is seen is true."""
    deadline = time.monotonic() + within
    while True:
        try:
            if look():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "It did not come true in time."
        time.sleep(0.02)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until
