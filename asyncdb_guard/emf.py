"""CloudWatch metrics from Lambda: one line a claims load, in the embedded metric format."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

_UNITS = {"CacheMiss": "Count", "AcquireTime": "Milliseconds", "Rejected": "Count", "Failed": "Count"}
_YES = frozenset({"1", "true", "t", "yes", "y", "on"})


class LoadMetrics:
    """What one `load_claims` has to tell; lives for that call."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {"Rejected": 0, "Failed": 0}

    def looked_up(self, *, miss: bool) -> None:
        """Claims were asked for: 1 if that took a load, so that the average is the miss rate."""
        self._values["CacheMiss"] = int(miss)

    def acquired(self, seconds: float) -> None:
        """A connection was borrowed; a second one for the same load adds up."""
        self._values["AcquireTime"] = round(self._values.get("AcquireTime", 0) + seconds * 1000, 3)

    def rejected(self) -> None:
        """The circuit breaker refused."""
        self._values["Rejected"] = 1

    def failed(self) -> None:
        """The sign-in was denied."""
        self._values["Failed"] = 1

    def publish(self) -> None:
        """In Lambda, print one line in CloudWatch's embedded metric format; elsewhere do nothing.

        Conventional variables: POWERTOOLS_METRICS_NAMESPACE (default `asyncdb_guard`), POWERTOOLS_SERVICE_NAME
        (default `service_undefined`), and POWERTOOLS_METRICS_DISABLED to switch it off.
        """
        environment = os.environ
        # not the runtime's address: a copy of the function that is run elsewhere for a test has this name, too
        if "AWS_LAMBDA_FUNCTION_NAME" not in environment:
            return
        if environment.get("POWERTOOLS_METRICS_DISABLED", "").strip().lower() in _YES:
            return
        line = emf_line(
            self._values,
            at=time.time(),
            namespace=environment.get("POWERTOOLS_METRICS_NAMESPACE", "").strip() or "asyncdb_guard",
            service=environment.get("POWERTOOLS_SERVICE_NAME", "").strip() or "service_undefined",
        )
        # A sign-in does not fail because nobody reads its metrics.
        with contextlib.suppress(OSError, ValueError):
            # One write, past `logging`: a prefix would make it a line like any other.
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def emf_line(values: dict[str, float], *, at: float, namespace: str, service: str) -> str:
    """One document of the embedded metric format, on one line; `at` in seconds since the epoch.

    Amazon CloudWatch user guide, "Specification: Embedded metric format".
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
