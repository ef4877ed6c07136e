"""What Lambda says about this execution environment, in its environment variables. Read at each use, never at import.

Source: AWS Lambda developer guide, "Defined runtime environment variables".
"""

from __future__ import annotations

import os


def function_name() -> str | None:
    """The name of the function, or None outside Lambda.

    Not the address of the runtime API: a test that runs the function elsewhere also sets this variable.
    """
    return os.environ.get("AWS_LAMBDA_FUNCTION_NAME") or None


def initialised_on_demand() -> bool:
    """Whether an invocation waited for this environment, which is not so with provisioned concurrency."""
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "provisioned-concurrency"
