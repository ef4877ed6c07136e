"""The code of docs/services.md does what the page says."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import Eventually

PAGE = Path(__file__).parents[1] / "docs" / "services.md"


def block(heading: str) -> dict[str, Any]:
    """What the first Python block below a heading defines."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found, heading
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(ast.parse(found[1]), str(PAGE), "exec"), names)
    return names


@pytest.fixture(autouse=True)
def environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_URL", url)


async def test_sqlalchemy() -> None:
    page = block("SQLAlchemy")
    async with page["pool"]:
        assert await page["answer"]() == 42


async def test_opentelemetry() -> None:
    page = block("OpenTelemetry")
    async with page["pool"] as pool:
        await pool.ping()
        assert pool.observers
        page["instrumentation"].uninstrument()
        assert not pool.observers


async def test_listen(monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", "2")
    page = block("LISTEN")
    async with page["pool"] as pool:
        worker = asyncio.create_task(page["work"]())
        await eventually(lambda: pool.fetchval("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))
        await pool.execute("NOTIFY jobs, 'one'")
        await eventually(lambda: page["done"] == ["one"])
    await worker


def test_the_table_of_metrics_names_all_there_are() -> None:
    told = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    source = (PAGE.parents[1] / "asyncdb_guard" / "otel.py").read_text(encoding="utf-8")
    made = set(re.findall(r"create_\w+\(\s*\"([\w.]+)\"", source))
    assert told == made
