"""OpenTelemetry's metrics of a pool, by the semantic conventions for database client connection pools.

https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools. Needs the extra `otel`, which
is OpenTelemetry's API alone: without an SDK, everything here does nothing.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider

from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.events import CircuitClosed, CircuitHalfOpened, CircuitOpened, ConnectionOpened, Event
from asyncdb_guard.pool import GuardedPool, PoolStats

_SCOPE = "asyncdb_guard"
_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_CIRCUIT_STATE = "asyncdb_guard.circuit.state"
_SPAN = "asyncdb_guard.acquire"

_DURATIONS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bounds of the histograms, in seconds: the advice of the conventions for durations of a database client."""

_TRANSITIONS: dict[type[Event], str] = {CircuitOpened: "open", CircuitHalfOpened: "half_open", CircuitClosed: "closed"}


class Instrumentation:
    """What `instrument` returns. It reports until `uninstrument()`, or for as long as its pool exists."""

    def __init__(self, pool: GuardedPool, name: str, instruments: _Instruments, tracer: Tracer | None) -> None:
        self._pool = weakref.ref(pool)
        self._attributes = {_POOL_NAME: name}
        self._instruments = instruments
        self._tracer = tracer
        pool.events.add(self._hear)
        pool.observers.add(self)
        instruments.reporting.append(self)

    def uninstrument(self) -> None:
        """Stop reporting. Calling it again does nothing."""
        pool = self._pool()
        if pool is not None:
            pool.events.remove(self._hear)
            pool.observers.remove(self)
        if self in self._instruments.reporting:
            self._instruments.reporting.remove(self)

    def snapshot(self) -> tuple[PoolStats, dict[str, str]] | None:
        """The pool's counts and its attributes; None if it has nothing to tell."""
        pool = self._pool()
        if pool is None:
            self.uninstrument()
            return None
        try:
            return pool.stats(), self._attributes
        except ConfigurationError:  # which whoever uses the pool is told
            return None

    def acquired(self, seconds: float) -> None:
        """Called by the pool."""
        self._instruments.wait_time.record(seconds, self._attributes)
        self._trace(seconds, None)

    def failed(self, seconds: float, error: BaseException) -> None:
        """Called by the pool."""
        self._trace(seconds, error)

    def released(self, seconds: float) -> None:
        """Called by the pool."""
        self._instruments.use_time.record(seconds, self._attributes)

    def _hear(self, event: Event) -> None:
        if isinstance(event, ConnectionOpened):
            self._instruments.create_time.record(event.seconds, self._attributes)
        elif (state := _TRANSITIONS.get(type(event))) is not None:
            self._instruments.transitions.add(1, {**self._attributes, _CIRCUIT_STATE: state})

    def _trace(self, seconds: float, error: BaseException | None) -> None:
        if self._tracer is None:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            _SPAN,
            kind=SpanKind.INTERNAL,
            attributes={"db.system.name": "postgresql", **self._attributes},
            start_time=ended - round(seconds * 1e9),
        )
        if error is not None:
            # the type alone: the text may contain anything
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(StatusCode.ERROR)
        span.end(ended)


class _Instruments:
    """The instruments of one meter provider, for all its pools: a meter keeps only the first of two with one name."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self.reporting: list[Instrumentation] = []
        meter = metrics.get_meter(_SCOPE, meter_provider=provider)
        self.create_time = meter.create_histogram(
            "db.client.connection.create_time",
            unit="s",
            description="The time it took to create a new connection.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self.wait_time = meter.create_histogram(
            "db.client.connection.wait_time",
            unit="s",
            description="The time it took to obtain an open connection from the pool.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self.use_time = meter.create_histogram(
            "db.client.connection.use_time",
            unit="s",
            description="The time between borrowing a connection and returning it to the pool.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self.transitions = meter.create_counter(
            "asyncdb_guard.circuit.transitions",
            unit="{transition}",
            description="How often the circuit breaker has entered the state described by the `state` attribute.",
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.count",
            [self._observe(_by_state)],
            unit="{connection}",
            description="The number of connections that are currently in state described by the `state` attribute.",
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.max",
            [self._observe(lambda stats: [(stats["pool_max"], {})])],
            unit="{connection}",
            description="The maximum number of open connections allowed.",
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.pending_requests",
            [self._observe(lambda stats: [(stats["waiting"], {})])],
            unit="{request}",
            description="The number of current pending requests for an open connection.",
        )
        meter.create_observable_counter(
            "db.client.connection.timeouts",
            [self._observe(lambda stats: [(stats["acquire_timeouts"], {})])],
            unit="{timeout}",
            description="The number of connection timeouts that have occurred trying to obtain a connection from the"
            " pool.",
        )
        meter.create_observable_counter(
            "asyncdb_guard.circuit.rejections",
            [self._observe(lambda stats: [(stats["rejections"], {})])],
            unit="{request}",
            description="The number of requests for a connection that the open circuit has refused.",
        )

    def _observe(
        self, read: Callable[[PoolStats], list[tuple[int, dict[str, str]]]]
    ) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(_options: CallbackOptions) -> Iterator[Observation]:
            for instrumentation in tuple(self.reporting):
                if (found := instrumentation.snapshot()) is not None:
                    stats, attributes = found
                    for value, more in read(stats):
                        yield Observation(value, {**attributes, **more})

        return observe


def _by_state(stats: PoolStats) -> list[tuple[int, dict[str, str]]]:
    return [(stats["idle"], {_STATE: "idle"}), (stats["lent"], {_STATE: "used"})]


_instruments: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()
"""By the meter provider, for as long as it exists."""


def instrument(
    pool: GuardedPool,
    meter_provider: MeterProvider | None = None,
    *,
    pool_name: str = "asyncdb_guard",
    spans: bool = False,
    tracer_provider: TracerProvider | None = None,
) -> Instrumentation:
    """Report the pool's metrics to OpenTelemetry, from now on. No I/O.

    `meter_provider` and `tracer_provider` default to the global ones. `pool_name` tells the pools of one process apart.
    `spans`: one span for each acquisition as well, with its duration and, if it failed, the type of the error.

    The metrics are `db.client.connection.count`, `.max`, `.pending_requests`, `.timeouts`, `.create_time`, `.wait_time`
    and `.use_time`, and `asyncdb_guard.circuit.transitions` and `.rejections`. Durations are in seconds.
    """
    provider = meter_provider if meter_provider is not None else metrics.get_meter_provider()
    instruments = _instruments.get(provider)
    if instruments is None:
        instruments = _instruments[provider] = _Instruments(provider)
    tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider) if spans else None
    return Instrumentation(pool, pool_name, instruments, tracer)
