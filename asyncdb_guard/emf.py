"""CloudWatch metrics from Lambda: one line per invocation, in the embedded metric format (EMF)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Generator, Mapping
from typing import Any, cast
from weakref import WeakKeyDictionary

from asyncdb_guard.lambda_environment import function_name, initialised_on_demand
from asyncdb_guard.pool.registry import OpenPool, used_pools

UNITS = {
    "CacheMiss": "Count",
    "Degraded": "Count",
    "Provisioned": "Count",
    "Failed": "Count",
    "Rejected": "Count",
    "AcquireTime": "Milliseconds",
    "ConnectTime": "Milliseconds",
    "CircuitOpened": "Count",
    "ColdStart": "Count",
}
"""Every metric, and its unit."""

DIMENSIONS = ("service", "function_name")
"""An alarm must name both."""

_TRUE_VALUES = frozenset({"1", "true", "t", "yes", "y", "on"})
_COUNTED = ("acquired", "wait_ms", "connects", "connect_ms", "rejections", "circuit_openings")


class InvocationMetrics:
    """The metrics of one invocation; lives for that invocation."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {"Failed": 0}

    def record_lookup(self, *, miss: bool) -> None:
        """Record that claims were needed. A miss is 1, a hit 0, so that the average is the miss rate."""
        self._values["CacheMiss"] = int(miss)
        self._values.setdefault("Degraded", 0)

    def record_degraded(self) -> None:
        """Record that the sign-in got stale claims, or none, because the database was unavailable."""
        self._values["Degraded"] = 1

    def record_provisioned(self, *, done: bool) -> None:
        """Record whether the user was written to the database."""
        self._values["Provisioned"] = int(done)

    def record_failure(self) -> None:
        """Record that the invocation failed."""
        self._values["Failed"] = 1

    def publish(self) -> None:
        """In Lambda, print the metrics and those of the pools as one line on stdout; elsewhere, do nothing.

        Environment variables: POWERTOOLS_METRICS_NAMESPACE (default `asyncdb_guard`), POWERTOOLS_SERVICE_NAME (default
        `service_undefined`), and POWERTOOLS_METRICS_DISABLED=true to turn it off.
        """
        _process.publish(self._values)


@contextlib.contextmanager
def publishing() -> Generator[InvocationMetrics]:
    """Publish the metrics of the block at its end; whatever it raises is a failure."""
    metrics = InvocationMetrics()
    try:
        yield metrics
    except BaseException:  # a SystemExit denies the sign-in, too
        metrics.record_failure()
        raise
    finally:
        metrics.publish()


class ProcessMetrics:
    """What the process has reported so far; lives as long as the process."""

    def __init__(self) -> None:
        self._cold = True
        self._reported: WeakKeyDictionary[OpenPool, Mapping[str, float]] = WeakKeyDictionary()

    def publish(self, values: Mapping[str, float]) -> None:
        """Print `values`, and what the pools have counted since the last line, if metrics are on."""
        environment = os.environ
        function = function_name()
        if function is None or environment.get("POWERTOOLS_METRICS_DISABLED", "").strip().lower() in _TRUE_VALUES:
            return
        line = emf_line(
            {**values, **self._pools(), "ColdStart": int(self._cold and initialised_on_demand())},
            at=time.time(),
            namespace=environment.get("POWERTOOLS_METRICS_NAMESPACE", "").strip() or "asyncdb_guard",
            service=environment.get("POWERTOOLS_SERVICE_NAME", "").strip() or "service_undefined",
            function=function,
        )
        self._cold = False
        _print(line)

    def _pools(self) -> dict[str, float]:
        """What all pools have counted since the last line. A connect of the init phase is in the first line."""
        since: dict[str, float] = dict.fromkeys(_COUNTED, 0)
        for pool in used_pools():
            totals = cast("Mapping[str, float]", pool.totals())
            before = self._reported.get(pool, {})
            for name in _COUNTED:
                since[name] += totals[name] - before.get(name, 0)
            self._reported[pool] = totals
        values: dict[str, float] = {"Rejected": since["rejections"], "CircuitOpened": since["circuit_openings"]}
        if since["acquired"]:
            values["AcquireTime"] = since["wait_ms"]
        if since["connects"]:
            values["ConnectTime"] = since["connect_ms"]
        return values


def emf_line(values: Mapping[str, float], *, at: float, namespace: str, service: str, function: str) -> str:
    """One EMF document on one line; `at` in seconds since the epoch.

    Source: Amazon CloudWatch user guide, "Specification: Embedded metric format".
    """
    document: dict[str, Any] = {
        "_aws": {
            "Timestamp": int(at * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": namespace,
                    "Dimensions": [list(DIMENSIONS)],
                    "Metrics": [{"Name": name, "Unit": UNITS[name]} for name in values],
                }
            ],
        },
        **dict(zip(DIMENSIONS, (service, function), strict=True)),
    }
    return json.dumps(document | {name: round(value, 3) for name, value in values.items()})


def _print(line: str) -> None:
    """Write a line to stdout, or drop it if stdout is missing, broken or blocked: metrics must not fail a sign-in."""
    stdout: Any = sys.stdout
    with contextlib.suppress(Exception):  # somebody's wrapper of stdout may raise anything
        if _is_blocked(stdout):
            return
        # One write, without `logging`: CloudWatch ignores a line with a prefix.
        stdout.write(line + "\n")
        stdout.flush()


def _is_blocked(stdout: Any) -> bool:
    """Whether a write would wait for a reader, as the other end of a full pipe does not read."""
    try:
        descriptor = stdout.fileno()
    except Exception:
        return False  # it is in memory
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return not poll.poll(0)


_process = ProcessMetrics()
"""The only instance: two lines must not report the same connect."""
