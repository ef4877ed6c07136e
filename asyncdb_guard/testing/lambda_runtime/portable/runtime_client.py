"""What `awslambdaric` needs from its native part, which is built on Linux only; found by it under this very name.

One difference: a signal handler of Python's also runs while this waits for an event.
"""

from __future__ import annotations

import http.client
import os

_agent = ""


def initialize_client(user_agent: str) -> None:
    global _agent  # noqa: PLW0603
    _agent = user_agent


def next() -> tuple[bytes, dict[str, str | int]]:  # noqa: A001
    """Wait for an event: its body and the headers that came with it, the deadline as a number."""
    body, headers = _ask("GET", "next", 200)
    deadline = int(headers["Lambda-Runtime-Deadline-Ms"])
    return body, {**headers, "Lambda-Runtime-Deadline-Ms": deadline}


def post_invocation_result(invoke_id: str, body: bytes, content_type: str, invocation_id: str | None = None) -> None:
    _ask("POST", f"{invoke_id}/response", 202, body, {"Content-Type": content_type})


def post_error(invoke_id: str, error: str, xray_fault: str, invocation_id: str | None = None) -> None:
    headers = {"Content-Type": "application/json", "Lambda-Runtime-Function-XRay-Error-Cause": xray_fault}
    _ask("POST", f"{invoke_id}/error", 202, error.encode(), headers)


def _ask(
    method: str, what: str, expected: int, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        path = f"/2018-06-01/runtime/invocation/{what}"
        connection.request(method, path, body, {"User-Agent": _agent, **(headers or {})})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != expected:
        raise RuntimeError(f"The Runtime API answered {method} {what} with {response.status}.")
    return answer, dict(response.getheaders())
