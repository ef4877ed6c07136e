"""The names of `asyncdb_guard.testing`, each imported from its module when it is first used."""

from __future__ import annotations

import sys
from importlib import import_module

_HOMES = {
    "Answer": "lambda_runtime.endpoint",
    "BorrowLeftOpenError": "pools.errors",
    "EnvironmentFailed": "lambda_runtime.endpoint",
    "LambdaRuntime": "lambda_runtime.process",
    "ManualClock": "manual_clock",
    "Observer": "postgres.observer",
    "PostgresNotFoundError": "postgres.installation",
    "PostgresUrlError": "postgres.databases",
    "Recording": "recording",
    "RolledBackError": "pools.errors",
    "RolledBackPool": "pools.rolled_back",
    "RuntimeApi": "lambda_runtime.api",
    "TcpProxy": "tcp_proxy.proxy",
    "TemporaryDatabase": "postgres.databases",
    "TemporaryPostgres": "postgres.server",
    "WatchedPool": "pools.watched",
    "access_claims": "cognito_events",
    "cognito_client": "cognito_events",
    "cognito_user": "cognito_events",
    "confirmation_event": "cognito_events",
    "database_down": "pools.outage",
    "id_claims": "cognito_events",
    "machine_event": "cognito_events",
    "open_circuit": "pools.circuit",
    "recorded": "recording",
    "rolled_back": "pools.rolled_back",
    "token_event": "cognito_events",
}
"""Where each name is, below `asyncdb_guard.testing`."""

_ROOM = __name__.rpartition(".")[0]


def __getattr__(name: str) -> object:
    """What `asyncdb_guard.testing` looks up a name with that it does not have yet."""
    if name not in _HOMES:
        raise AttributeError(f"module {_ROOM!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{_ROOM}.{_HOMES[name]}"), name)
    setattr(sys.modules[_ROOM], name, value)
    return value
