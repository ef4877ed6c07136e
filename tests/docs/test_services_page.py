"""The code of docs/services.md does what the page says."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.support.eventually import Eventually
from tests.support.pages import ROOT, take_one

PAGE = ROOT / "docs" / "services.md"

SQLALCHEMY = take_one("docs/services.md", "SQLAlchemy")
OPENTELEMETRY = take_one("docs/services.md", "OpenTelemetry")
LISTEN = take_one("docs/services.md", "LISTEN")


pytestmark = pytest.mark.usefixtures("environment")


async def test_sqlalchemy() -> None:
    page = SQLALCHEMY.run()
    async with page["pool"]:
        assert await page["answer"]() == 42


async def test_opentelemetry() -> None:
    page = OPENTELEMETRY.run()
    async with page["pool"] as pool:
        await pool.ping()
        assert pool.observers.present
        page["instrumentation"].uninstrument()
        assert not pool.observers.present


async def test_listen(eventually: Eventually) -> None:
    page = LISTEN.run()
    async with page["pool"] as pool:
        worker = asyncio.create_task(page["work"]())
        await eventually(lambda: pool.fetchval("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))
        await pool.execute("NOTIFY jobs, 'one'")
        await eventually(lambda: page["done"] == ["one"])
    await worker


def test_the_table_of_metrics_names_all_there_are() -> None:
    told = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    source = (ROOT / "asyncdb_guard" / "otel.py").read_text(encoding="utf-8")
    made = set(re.findall(r"create_\w+\(\s*\"([\w.]+)\"", source))
    assert told == made
