"""For test suites: real parts to test against, and pools that leave no trace.

Nothing is imported until it is used.
"""

from typing import TYPE_CHECKING

from asyncdb_guard.testing.exports import __getattr__ as __getattr__

if TYPE_CHECKING:
    from asyncdb_guard.testing.cognito_events import (
        access_claims,
        cognito_client,
        cognito_user,
        confirmation_event,
        id_claims,
        machine_event,
        token_event,
    )
    from asyncdb_guard.testing.lambda_runtime.api import RuntimeApi
    from asyncdb_guard.testing.lambda_runtime.endpoint import Answer, EnvironmentFailed
    from asyncdb_guard.testing.lambda_runtime.process import LambdaRuntime
    from asyncdb_guard.testing.manual_clock import ManualClock
    from asyncdb_guard.testing.pools.circuit import open_circuit
    from asyncdb_guard.testing.pools.errors import BorrowLeftOpenError, RolledBackError
    from asyncdb_guard.testing.pools.outage import database_down
    from asyncdb_guard.testing.pools.rolled_back import RolledBackPool, rolled_back
    from asyncdb_guard.testing.pools.watched import WatchedPool
    from asyncdb_guard.testing.postgres.databases import PostgresUrlError, TemporaryDatabase
    from asyncdb_guard.testing.postgres.installation import PostgresNotFoundError
    from asyncdb_guard.testing.postgres.observer import Observer
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres
    from asyncdb_guard.testing.recording import Recording, recorded
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

__all__ = [
    "Answer",
    "BorrowLeftOpenError",
    "EnvironmentFailed",
    "LambdaRuntime",
    "ManualClock",
    "Observer",
    "PostgresNotFoundError",
    "PostgresUrlError",
    "Recording",
    "RolledBackError",
    "RolledBackPool",
    "RuntimeApi",
    "TcpProxy",
    "TemporaryDatabase",
    "TemporaryPostgres",
    "WatchedPool",
    "access_claims",
    "cognito_client",
    "cognito_user",
    "confirmation_event",
    "database_down",
    "id_claims",
    "machine_event",
    "open_circuit",
    "recorded",
    "rolled_back",
    "token_event",
]
