"""Why no session could be opened, in words that are safe to show: no host, no user, no secret."""

from __future__ import annotations

import ssl

import asyncpg

from asyncdb_guard.errors import ConnectFailedError, ConnectTimeoutError
from asyncdb_guard.judgement import sqlstate_of

_BY_SQLSTATE = {
    "08P01": "the server refused a startup parameter; if it is a pooler, set LAMBDA_DATABASE_PROXY_PROFILE=true",
    "28000": "the server refused the login; check the user and its rights",
    "28P01": "the server refused the password",
    "3D000": "the database named in LAMBDA_DATABASE_URL does not exist",
    "53300": "the server or the role has no connection left",
    "57P03": "the server is starting up or shutting down",
}


def connect_error(cause: Exception) -> ConnectFailedError:
    """Wrap what the driver raised at a connect; it becomes the `__cause__`."""
    kind = ConnectTimeoutError if isinstance(cause, TimeoutError) else ConnectFailedError
    error = kind(f"The database could not be reached: {_reason(cause)}.")
    error.__cause__ = cause
    return error


def _reason(cause: Exception) -> str:
    sqlstate = sqlstate_of(cause)
    if isinstance(cause, asyncpg.PostgresError) and sqlstate:
        return f"{_BY_SQLSTATE.get(sqlstate, 'the server refused the connection')} (SQLSTATE {sqlstate})"
    if isinstance(cause, TimeoutError):
        return "it did not answer a connect in time"
    if isinstance(cause, ssl.SSLCertVerificationError):
        # Modules/_ssl.c: "Hostname mismatch, certificate is not valid for '…'."; no other text names the host
        return f"its TLS certificate could not be verified ({cause.verify_message.partition(',')[0]})"
    return type(cause).__name__
