"""What OpenTelemetry's own SDK collects of a pool, beside its own instrumentation of asyncpg."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.trace import StatusCode

from asyncdb_guard import AcquireTimeoutError, CircuitOpenError, ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.otel import instrument
from tests.support.bound import at_rest

DEAD = "postgresql://u@127.0.0.1:1/d"


class Collector:
    """A meter provider, and what it has collected."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> dict[str, Any]:
        """Each metric by its name."""
        data = self.reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        return {
            metric.name: metric
            for resource in resources
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }  # fmt: skip

    def points(self, name: str) -> list[Any]:
        metric = self.metrics().get(name)
        return list(metric.data.data_points) if metric is not None else []

    def values(self, name: str, attribute: str = "db.client.connection.pool.name") -> dict[Any, int]:
        """The values of a metric, by one of its attributes."""
        return {point.attributes[attribute]: point.value for point in self.points(name)}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.provider.shutdown()


@pytest.fixture
def spans() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


async def test_connections_are_counted_by_state(url, collector):
    async with GuardedPool(DatabaseSettings(url=url, pool_max=3)) as pool:
        instrument(pool, collector.provider)
        async with pool.acquire(), pool.acquire():
            assert collector.values("db.client.connection.count", "db.client.connection.state") == {
                "used": 2,
                "idle": 0,
            }
        await at_rest(pool)
        assert collector.values("db.client.connection.count", "db.client.connection.state") == {"used": 0, "idle": 2}
        assert collector.values("db.client.connection.max") == {"asyncdb_guard": 3}


async def test_waiters_and_timeouts_are_counted(url, collector, eventually):
    async with GuardedPool(DatabaseSettings(url=url, connect_timeout_ms=80)) as pool:
        instrument(pool, collector.provider)
        async with pool.acquire():
            waiter = asyncio.create_task(pool.ping())
            await eventually(lambda: collector.values("db.client.connection.pending_requests") == {"asyncdb_guard": 1})
            with pytest.raises(AcquireTimeoutError):
                await waiter
        assert collector.values("db.client.connection.pending_requests") == {"asyncdb_guard": 0}
        assert collector.values("db.client.connection.timeouts") == {"asyncdb_guard": 1}


async def test_durations_are_in_seconds(url, collector):
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        instrument(pool, collector.provider)
        async with pool.acquire() as connection:
            await connection.execute("SELECT pg_sleep(0.02)")
        await pool.ping()
    create, wait, use = (collector.points(f"db.client.connection.{name}_time")[0] for name in ("create", "wait", "use"))
    assert (create.count, wait.count, use.count) == (1, 2, 2)
    assert 0 < create.sum <= wait.sum < 2
    assert 0.02 <= use.max < 2
    assert use.explicit_bounds[0] == 0.001


async def test_a_borrow_by_await_is_measured_too(url, collector):
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        instrument(pool, collector.provider)
        await pool.release(await pool.acquire())
    assert collector.points("db.client.connection.use_time")[0].count == 1


async def test_the_circuit_tells_where_it_goes(collector, later):
    settings = DatabaseSettings(url=DEAD, breaker_fail_max=1)
    async with GuardedPool(settings) as pool:
        instrument(pool, collector.provider)
        with pytest.raises(ConnectFailedError):
            await pool.ping()
        with pytest.raises(CircuitOpenError):
            await pool.ping()
        later(60)
        with pytest.raises(ConnectFailedError):
            await pool.ping()
    states = collector.values("asyncdb_guard.circuit.transitions", "asyncdb_guard.circuit.state")
    assert states == {"open": 2, "half_open": 1}
    assert collector.values("asyncdb_guard.circuit.rejections") == {"asyncdb_guard": 1}


async def test_names_units_and_kinds_are_those_of_the_conventions(url, collector):
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        instrument(pool, collector.provider)
        await pool.ping()
        ours = {name: metric for name, metric in collector.metrics().items() if name.startswith("db.")}
    known = Collector()
    meter = known.provider.get_meter("the conventions")
    words = ("count", "max", "pending_requests", "timeouts", "create_time", "wait_time", "use_time")
    for word in words:
        standard = getattr(db_metrics, f"create_db_client_connection_{word}")(meter)
        standard.record(1) if word.endswith("_time") else standard.add(1)
    theirs = known.metrics()
    assert ours.keys() == theirs.keys() == {f"db.client.connection.{word}" for word in words}
    for name, metric in ours.items():
        assert (metric.unit, metric.description) == (theirs[name].unit, theirs[name].description)
        assert type(metric.data) is type(theirs[name].data)
    known.provider.shutdown()


async def test_two_pools_are_told_apart(url, collector):
    async with (
        GuardedPool(DatabaseSettings(url=url)) as one,
        GuardedPool(DatabaseSettings(url=url, pool_max=2)) as other,
    ):
        instrument(one, collector.provider, pool_name="writer")
        instrument(other, collector.provider, pool_name="reader")
        assert collector.values("db.client.connection.max") == {"writer": 1, "reader": 2}


async def test_nothing_is_told_after_uninstrument(url, collector):
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        instrumentation = instrument(pool, collector.provider)
        await pool.ping()
        instrumentation.uninstrument()
        instrumentation.uninstrument()
        await pool.ping()
        assert collector.points("db.client.connection.use_time")[0].count == 1
        assert collector.points("db.client.connection.max") == []
        assert not pool.observers.present


def test_a_pool_that_is_gone_is_told_of_no_more(collector):
    instrumentation = instrument(GuardedPool(DatabaseSettings(url=DEAD)), collector.provider)
    gc.collect()
    assert collector.points("db.client.connection.max") == []
    instrumentation.uninstrument()


def test_a_pool_with_a_wrong_setting_tells_nothing(collector, monkeypatch):
    monkeypatch.setenv("LAMBDA_DATABASE_POOL_MAX", "many")
    pool = GuardedPool()
    instrument(pool, collector.provider)
    assert collector.metrics() == {}


async def test_there_are_no_spans_unless_asked_for(url, spans):
    provider, exporter = spans
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        instrument(pool, tracer_provider=provider)
        await pool.ping()
    assert exporter.get_finished_spans() == ()


async def test_each_acquisition_has_a_span_inside_its_callers(url, spans, collector):
    provider, exporter = spans
    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        instrument(pool, collector.provider, spans=True, tracer_provider=provider)
        with provider.get_tracer("test").start_as_current_span("request") as request:
            await pool.ping()
    span = exporter.get_finished_spans()[0]
    assert span.name == "asyncdb_guard.acquire"
    assert span.parent.span_id == request.get_span_context().span_id
    assert dict(span.attributes) == {
        "db.system.name": "postgresql",
        "db.client.connection.pool.name": "asyncdb_guard",
    }
    assert 0 < span.end_time - span.start_time < 2e9


async def test_a_span_of_a_failure_has_the_type_of_the_error_alone(spans, collector):
    provider, exporter = spans
    async with GuardedPool(DatabaseSettings(url=DEAD)) as pool:
        instrument(pool, collector.provider, spans=True, tracer_provider=provider)
        with pytest.raises(ConnectFailedError):
            await pool.ping()
    span = exporter.get_finished_spans()[0]
    assert span.attributes["error.type"] == "ConnectFailedError"
    assert span.status.status_code is StatusCode.ERROR
    assert (span.status.description, span.events) == (None, ())


async def test_it_stands_beside_opentelemetrys_own_instrumentation_of_asyncpg(url, spans, collector):
    provider, exporter = spans
    instrumentor = AsyncPGInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        async with GuardedPool(DatabaseSettings(url=url)) as pool:
            instrument(pool, collector.provider, spans=True, tracer_provider=provider)
            assert await pool.fetchval("SELECT 41 + 1") == 42
            names = [span.name for span in exporter.get_finished_spans()]
            assert "asyncdb_guard.acquire" in names
            assert any(span.attributes.get("db.statement") == "SELECT 41 + 1" for span in exporter.get_finished_spans())
            assert collector.points("db.client.connection.use_time")[0].count == 1
    finally:
        instrumentor.uninstrument()


async def test_an_observer_that_fails_harms_no_borrow(url, caplog):
    class Broken:
        def acquired(self, seconds: float) -> None:
            raise KeyError("secret")

        released = acquired

        def failed(self, seconds: float, error: BaseException) -> None:
            raise AssertionError

    async with GuardedPool(DatabaseSettings(url=url)) as pool:
        pool.observers.add(Broken())
        assert await pool.fetchval("SELECT 1") == 1
    assert caplog.messages == ["An observer of borrows failed with KeyError."] * 2
