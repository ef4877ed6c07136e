"""The schema, the web client, and the triggers. Everything else comes from the plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from app import notes
from app.web import create_app

from asyncdb_guard import DatabaseSettings, GuardedPool
from asyncdb_guard.cognito import CognitoTriggers

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Where anyio runs the tests: on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_schema() -> str:
    """Run once; each process of the run gets a copy of the result."""
    return (HERE / "schema.sql").read_text(encoding="utf-8")


@pytest.fixture
def guarded_settings(postgres_url: str) -> DatabaseSettings:
    """As in production, but for the patience."""
    return DatabaseSettings(url=postgres_url, connect_timeout_ms=1000)


@pytest.fixture
def client_of() -> Callable[[GuardedPool], httpx.AsyncClient]:
    """A web client of the application on a pool: `async with client_of(pool) as client`."""

    def make(pool: GuardedPool) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(pool)), base_url="http://app")

    return make


@pytest.fixture
def triggers(rolled_back_pool: GuardedPool) -> CognitoTriggers:
    """The two triggers, on a pool that leaves no trace."""
    return CognitoTriggers(rolled_back_pool, claims=notes.claims, provision=notes.provision)
