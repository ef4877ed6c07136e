"""CloudWatch metrics from Lambda: one line per `load_claims`, in the embedded metric format (EMF)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from typing import Any

_UNITS = {"CacheMiss": "Count", "AcquireTime": "Milliseconds", "Rejected": "Count", "Failed": "Count"}
_TRUE_VALUES = frozenset({"1", "true", "t", "yes", "y", "on"})


class TriggerMetrics:
    """The metrics of one call of a trigger; lives for that call."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {"Rejected": 0, "Failed": 0}

    def record_lookup(self, *, miss: bool) -> None:
        """Record that claims were needed. A miss is 1, a hit 0, so that the average is the miss rate."""
        self._values["CacheMiss"] = int(miss)

    def add_acquire_time(self, seconds: float) -> None:
        """Add the time that borrowing a connection took."""
        self._values["AcquireTime"] = round(self._values.get("AcquireTime", 0) + seconds * 1000, 3)

    def record_rejection(self) -> None:
        """Record that the circuit breaker rejected the call."""
        self._values["Rejected"] = 1

    def record_failure(self) -> None:
        """Record that the trigger failed."""
        self._values["Failed"] = 1

    def publish(self) -> None:
        """In Lambda, print the metrics as one line on stdout; elsewhere, do nothing.

        Environment variables: POWERTOOLS_METRICS_NAMESPACE (default `asyncdb_guard`), POWERTOOLS_SERVICE_NAME (default
        `service_undefined`), and POWERTOOLS_METRICS_DISABLED=true to turn it off.
        """
        environment = os.environ
        # Not the address of the runtime API: a test that runs the function elsewhere also sets this variable.
        if "AWS_LAMBDA_FUNCTION_NAME" not in environment:
            return
        if environment.get("POWERTOOLS_METRICS_DISABLED", "").strip().lower() in _TRUE_VALUES:
            return
        line = emf_line(
            self._values,
            at=time.time(),
            namespace=environment.get("POWERTOOLS_METRICS_NAMESPACE", "").strip() or "asyncdb_guard",
            service=environment.get("POWERTOOLS_SERVICE_NAME", "").strip() or "service_undefined",
        )
        _print(line)


def emf_line(values: dict[str, float], *, at: float, namespace: str, service: str) -> str:
    """One EMF document on one line; `at` in seconds since the epoch.

    Source: Amazon CloudWatch user guide, "Specification: Embedded metric format".
    """
    document: dict[str, Any] = {
        "_aws": {
            "Timestamp": int(at * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": namespace,
                    "Dimensions": [["service"]],
                    "Metrics": [{"Name": name, "Unit": _UNITS[name]} for name in values],
                }
            ],
        },
        "service": service,
    }
    return json.dumps(document | values)


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
