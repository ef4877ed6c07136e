"""Why a connect failed and what to do about it, in words that are safe to show: no host, no user, no secret."""

from __future__ import annotations

import socket
import ssl

import asyncpg

from asyncdb_guard.errors import ConnectFailedError, ConnectTimeoutError
from asyncdb_guard.verdict import sqlstate_of

_BY_SQLSTATE = {
    "08P01": "the server reported a protocol violation; check that a PostgreSQL server or pooler listens there",
    "28000": "the server refused the login; check the user and its privileges, and LAMBDA_DATABASE_SSLMODE, as a server"
    " that requires TLS answers the same",
    "28P01": "the server refused the password; check it, and the user",
    "3D000": "the database does not exist; correct its name in LAMBDA_DATABASE_URL, or create it",
    "53300": "the server or the role has no connections left; lower LAMBDA_DATABASE_POOL_MAX or the number of"
    " environments, or raise the limit",
    "57P03": "the server is starting up or shutting down; try again later",
}

_POOLER = (
    "the server refused a startup parameter, as poolers do; set LAMBDA_DATABASE_PROXY_PROFILE=true, or pgbouncer=true"
    " in the database URL"
)

_RENEWED = (
    ", also with newly fetched credentials; wait for a rotation to end, or check the secret; for IAM, check the role"
    " rds_iam and the policy rds-db:connect"
)

_BY_VERIFY_CODE = {
    9: "is not valid yet; check the clocks",
    10: "has expired; renew it on the server",
    18: "is self-signed; add it to the file that LAMBDA_DATABASE_SSL_ROOT_CERT names",
    19: "comes from a CA that is not trusted; name that CA's file in LAMBDA_DATABASE_SSL_ROOT_CERT",
    20: "comes from a CA that is not trusted; name that CA's file in LAMBDA_DATABASE_SSL_ROOT_CERT",
    62: "is for another host name; connect by a name in the certificate, or set LAMBDA_DATABASE_SSLMODE=verify-ca",
    64: "is not for this IP address; connect by a name in the certificate, or set LAMBDA_DATABASE_SSLMODE=verify-ca",
}
"""By OpenSSL's X509_V_ERR numbers (openssl-verification-options(1)), as OpenSSL's own texts show the host."""


def connect_error(cause: Exception, *, renewed: bool = False) -> ConnectFailedError:
    """Wrap what the driver raised during a connect; it becomes the `__cause__`.

    `renewed`: the server refused the login twice, the second time with newly fetched credentials.
    """
    kind = ConnectTimeoutError if isinstance(cause, TimeoutError) else ConnectFailedError
    error = kind(f"The database could not be reached: {_reason(cause, renewed)}.")
    error.__cause__ = cause
    return error


def login_refused(cause: asyncpg.PostgresError) -> bool:
    """Whether other credentials may succeed. PgBouncer reports a wrong password as 08P01, distinguished by its text."""
    sqlstate = sqlstate_of(cause) or ""
    return sqlstate[:2] == "28" or (sqlstate == "08P01" and "authentication failed" in str(cause))


def _reason(cause: Exception, renewed: bool) -> str:
    if isinstance(cause, asyncpg.PostgresError) and (sqlstate := sqlstate_of(cause)):
        return f"{_refusal(cause, sqlstate, renewed)} (SQLSTATE {sqlstate})"
    if isinstance(cause, TimeoutError):
        return (
            "it did not answer in time; check its address, the route and the security group, or raise"
            " LAMBDA_DATABASE_CONNECT_TIMEOUT_MS"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        code = cause.verify_code
        return f"its TLS certificate {_BY_VERIFY_CODE.get(code, f'could not be verified (OpenSSL says {code})')}"
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "reason", None)  # only what OpenSSL raised has one
        shown = f" ({reason})" if reason else ""
        return f"the TLS handshake failed{shown}; check the TLS versions that the server allows"
    if isinstance(cause, socket.gaierror):
        return "its host name could not be resolved; check the name and the DNS of the network"
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens at its host and port; check both, and that the server is running"
    # asyncpg/connect_utils.py: a bare ConnectionError means that the server declined TLS
    if type(cause) is ConnectionError and "SSL" in str(cause):
        return "it does not support TLS; enable TLS there, or set LAMBDA_DATABASE_SSLMODE=disable for plain text"
    return type(cause).__name__


def _refusal(cause: asyncpg.PostgresError, sqlstate: str, renewed: bool) -> str:
    if login_refused(cause):
        reason = _BY_SQLSTATE.get(sqlstate if sqlstate[:2] == "28" else "28P01", "the server refused the login")
        return reason.partition(";")[0] + _RENEWED if renewed else reason
    if sqlstate == "08P01" and "startup parameter" in str(cause):
        return _POOLER
    return _BY_SQLSTATE.get(sqlstate, "the server refused the connection")
