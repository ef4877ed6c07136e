"""Why no session could be opened, and what to do, in words that are safe to show: no host, no user, no secret."""

from __future__ import annotations

import socket
import ssl

import asyncpg

from asyncdb_guard.errors import ConnectFailedError, ConnectTimeoutError
from asyncdb_guard.verdict import login_refused, sqlstate_of

_BY_SQLSTATE = {
    "08P01": "the server refused what it was sent",
    "28000": "the server refused the login; check the user and its rights, and LAMBDA_DATABASE_SSLMODE, as a server"
    " that demands TLS answers so, too",
    "28P01": "the server refused the password",
    "3D000": "the database named in LAMBDA_DATABASE_URL does not exist",
    "53300": "the server or the role has no connection left",
    "57P03": "the server is starting up or shutting down",
}

_POOLER = (
    "the server refused a startup parameter, as poolers do; set LAMBDA_DATABASE_PROXY_PROFILE=true, or pgbouncer=true"
    " in the database URL"
)

_RENEWED = (
    ", with credentials fetched anew, too; wait for a rotation to end, or check the secret; for IAM, check the role"
    " rds_iam and the policy rds-db:connect"
)

_BY_VERIFY_CODE = {
    9: "is not valid yet; check the clocks",
    10: "has expired; renew it on the server",
    18: "is signed by itself; put it into the file of LAMBDA_DATABASE_SSL_ROOT_CERT",
    19: "comes from a CA that is not trusted; name that CA's file in LAMBDA_DATABASE_SSL_ROOT_CERT",
    20: "comes from a CA that is not trusted; name that CA's file in LAMBDA_DATABASE_SSL_ROOT_CERT",
    62: "is for another host name; connect by a name that it carries, or set LAMBDA_DATABASE_SSLMODE=verify-ca",
    64: "does not carry the address that was dialled; connect by a name that it carries, or set"
    " LAMBDA_DATABASE_SSLMODE=verify-ca",
}
"""By OpenSSL's X509_V_ERR numbers (openssl-verification-options(1)), since its own texts show the host."""


def connect_error(cause: Exception, *, renewed: bool = False) -> ConnectFailedError:
    """Wrap what the driver raised at a connect; it becomes the `__cause__`.

    `renewed`: the server refused the login twice, the second time with credentials that were fetched anew.
    """
    kind = ConnectTimeoutError if isinstance(cause, TimeoutError) else ConnectFailedError
    error = kind(f"The database could not be reached: {_reason(cause, renewed)}.")
    error.__cause__ = cause
    return error


def _reason(cause: Exception, renewed: bool) -> str:
    if isinstance(cause, asyncpg.PostgresError) and (sqlstate := sqlstate_of(cause)):
        return f"{_refusal(cause, sqlstate, renewed)} (SQLSTATE {sqlstate})"
    if isinstance(cause, TimeoutError):
        return (
            "it did not answer a connect in time; check its address, the route and the security group, or raise"
            " LAMBDA_DATABASE_CONNECT_TIMEOUT_MS"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        code = cause.verify_code
        return f"its TLS certificate {_BY_VERIFY_CODE.get(code, f'could not be verified (OpenSSL says {code})')}"
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "reason", None)  # only what OpenSSL raised has one
        return "the TLS handshake failed" + (f" ({reason})" if reason else "")
    if isinstance(cause, socket.gaierror):
        return "its host name could not be resolved; check it, and the DNS of the network"
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens at its host and port"
    # asyncpg/connect_utils.py: a bare ConnectionError says that the server answered no to the request for TLS
    if type(cause) is ConnectionError and "SSL" in str(cause):
        return "it does not speak TLS; turn TLS on there, or set LAMBDA_DATABASE_SSLMODE=disable for plain text"
    return type(cause).__name__


def _refusal(cause: asyncpg.PostgresError, sqlstate: str, renewed: bool) -> str:
    if login_refused(cause):
        return _BY_SQLSTATE.get(sqlstate if sqlstate[:2] == "28" else "28P01", "") + (_RENEWED if renewed else "")
    if sqlstate == "08P01" and "startup parameter" in str(cause):
        return _POOLER
    return _BY_SQLSTATE.get(sqlstate, "the server refused the connection")
