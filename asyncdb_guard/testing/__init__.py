"""For test suites: real parts to test against, and pools that leave no trace.

Nothing is imported until it is used.
"""

from typing import TYPE_CHECKING

from asyncdb_guard.testing.exports import __getattr__ as __getattr__

if TYPE_CHECKING:
    from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
    from asyncdb_guard.testing.lambda_runtime.endpoint import Answer, EnvironmentFailed
    from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime
    from asyncdb_guard.testing.postgres.installation import PostgresNotFoundError
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

__all__ = [
    "Answer",
    "EnvironmentFailed",
    "LambdaRuntime",
    "Observer",
    "PostgresNotFoundError",
    "RuntimeApi",
    "TcpProxy",
    "TemporaryPostgres",
]
