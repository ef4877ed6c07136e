"""Why a connect failed and what to do about it, in words that are safe to show: no host, no user, no secret."""

from __future__ import annotations

import errno
import re
import socket
import ssl

import asyncpg

from asyncdb_guard.errors import ConnectFailedError, ConnectTimeoutError
from asyncdb_guard.failures import login_refused, raised_by_driver, says, sqlstate_of
from asyncdb_guard.redaction import type_name

_POOLER = (
    "the server refused a startup parameter, as poolers do; set LAMBDA_DATABASE_PROXY_PROFILE=true, or pgbouncer=true"
    " in the database URL"
)

_SESSION_MODE_FULL = (
    "the pooler has no connection left in session mode; connect to its transaction mode (Supabase: port 6543) with"
    " LAMBDA_DATABASE_PROXY_PROFILE=true, or raise its pool size"
)

_POOLER_FULL = (
    "the pooler has no connection left; raise max_client_conn or its pool size, or lower LAMBDA_DATABASE_POOL_MAX"
)

_BY_TEXT = {
    "EMAXCONNSESSION": _SESSION_MODE_FULL,
    "MaxClientsInSessionMode": _SESSION_MODE_FULL,
    "Tenant or user not found": "the pooler does not know the user; behind Supabase's pooler it is postgres.<project>,"
    " and the host is that of the project's region",
    "no more connections allowed": _POOLER_FULL,
    "query_wait_timeout": _POOLER_FULL,
    "no such database": "the pooler does not know the database; check its name, and the pooler's list of databases",
    "no such user": "the pooler does not know the user; check its name, and the pooler's list of users",
    "startup parameter": _POOLER,
}
"""What some platforms say with an SQLSTATE that says nothing. Their words are matched, and never shown."""

_BY_SQLSTATE = {
    "08003": "the connection ended during the login; check that the host and the port lead to PostgreSQL, and the log"
    " of the server and of a proxy in front of it",
    "08P01": "the server refused what it was sent; check the database name and the user, and the log of a pooler",
    "0A000": _POOLER,
    "22023": "the server refused the value of a startup parameter; check LAMBDA_DATABASE_SERVER_SETTINGS,"
    " and application_name and schema in the database URL",
    "3D000": "the database named in LAMBDA_DATABASE_URL does not exist; create it, or correct its name",
    "42501": "the user may not connect to this database; GRANT CONNECT ON DATABASE to it",
    "42704": "the server does not know a startup parameter; check LAMBDA_DATABASE_SERVER_SETTINGS, or behind a"
    " pooler set LAMBDA_DATABASE_PROXY_PROFILE=true",
    "53300": "the server or the role has no connections left; lower LAMBDA_DATABASE_POOL_MAX or the Lambda's"
    " concurrency, or raise max_connections or the role's CONNECTION LIMIT",
    "55000": "the database does not accept connections at the moment; try again, or wake it up in the platform's"
    " console if it is suspended",
    "57P03": "the server is starting up or shutting down; try again in a few seconds",
    "57P04": "the database was dropped; create it, or correct its name in LAMBDA_DATABASE_URL",
    "58000": "the platform could not reach or start the server; try again, and check the platform's status page",
    "XX000": "the server, or a pooler in front of it, failed; try again, and check its log and the platform's status"
    " page",
}

_BY_CLASS = {
    "08": "the server, or a pooler in front of it, refused the connection; check its log",
    "53": "the server is out of resources; check its disk, memory and connections",
    "57": "the server ended the login; it may be shutting down or failing over; try again in a few seconds",
    "58": _BY_SQLSTATE["58000"],
    "XX": _BY_SQLSTATE["XX000"],
}

_ANY = "the server refused the connection; look for this SQLSTATE in its log"

_LOGIN = {
    "28000": (
        "the server refused the login",
        "check the user and its rights, and LAMBDA_DATABASE_SSLMODE, as a server that requires TLS answers the same",
    ),
    "28P01": ("the server refused the password", "check the user and the password in LAMBDA_DATABASE_URL"),
}

_PASSWORDLESS = (
    "the server asks for a password, and the settings have none; add it to LAMBDA_DATABASE_URL, or set"
    " LAMBDA_DATABASE_SECRET_ARN or LAMBDA_DATABASE_IAM_AUTH"
)

_RENEWED = (
    ", also with newly fetched credentials; wait for a rotation to end, or check the secret; for IAM, check the role"
    " rds_iam and the policy rds-db:connect"
)

_NOT_POSTGRESQL = (
    "it did not answer as PostgreSQL does; check that the host and the port in LAMBDA_DATABASE_URL lead to a PostgreSQL"
    " server"
)

_OPENSSL_REASON = "[A-Z0-9_]{1,60}"

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

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_IPV6_ADDRESS = r"\('[^']*:[^']*', \d+, \d+, \d+\)"
_IPV4_ADDRESS = r"\('[\d.]+', \d+\)"
"""How asyncio's texts show the addresses that it tried: matched, and never shown."""


def connect_error(cause: Exception, *, renewed: bool = False, passwordless: bool = False) -> ConnectFailedError:
    """Wrap what the driver raised during a connect; it becomes the `__cause__`.

    `renewed`: the server refused the login twice, the second time with newly fetched credentials. `passwordless`: the
    settings have no password.
    """
    kind = ConnectTimeoutError if isinstance(cause, TimeoutError) else ConnectFailedError
    error = kind(f"The database could not be reached: {_reason(cause, renewed, passwordless)}.")
    error.__cause__ = cause
    return error


def _reason(cause: Exception, renewed: bool, passwordless: bool) -> str:
    if isinstance(cause, asyncpg.PostgresError):
        sqlstate = sqlstate_of(cause)
        return (
            f"{_refusal(cause, sqlstate, renewed, passwordless)} (SQLSTATE {sqlstate})" if sqlstate else _NOT_POSTGRESQL
        )
    if isinstance(cause, TimeoutError):
        return (
            "it did not answer in time; check its address, the route and the security group, or raise"
            " LAMBDA_DATABASE_CONNECT_TIMEOUT_MS"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        code = cause.verify_code
        unknown = f"could not be verified (OpenSSL says {code}); check it with `openssl s_client -starttls postgres`"
        return f"its TLS certificate {_BY_VERIFY_CODE.get(code, unknown)}"
    if isinstance(cause, ssl.SSLError):
        reason = str(getattr(cause, "reason", None) or "")  # only what OpenSSL raised has one
        told = f" ({reason})" if re.fullmatch(_OPENSSL_REASON, reason) else ""
        return f"the TLS handshake failed{told}; check that the port is PostgreSQL's, and the server's TLS settings"
    if isinstance(cause, OSError):
        return _network(cause)
    if isinstance(cause, asyncpg.TargetServerAttributeNotMatched):
        return (
            "no server there is of the kind that target_session_attrs in the database URL requires; wait for the"
            " failover to end, name another host, or change target_session_attrs"
        )
    if says(cause, "uthentication method") or says(cause, "performing authentication"):
        return "it requires a login method that asyncpg does not support; configure scram-sha-256 in pg_hba.conf"
    kind = type_name(cause)
    if isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError) or raised_by_driver(cause):
        return f"{_NOT_POSTGRESQL} ({kind})"
    return f"the provider of the credentials failed with {kind}; see the __cause__ of this error"


def _network(cause: OSError) -> str:
    if isinstance(cause, socket.gaierror):
        return "its host name could not be resolved; check the name and the DNS of the network"
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens at its host and port; check both, and that the server runs"
    # asyncpg/connect_utils.py: a bare ConnectionError means that the server declined TLS
    if type(cause) is ConnectionError and "SSL" in str(cause):
        return "it does not support TLS; enable TLS there, or set LAMBDA_DATABASE_SSLMODE=disable for plain text"
    if isinstance(cause, FileNotFoundError | PermissionError):
        return "nothing listens on its Unix socket; check the directory and its rights, and that the server runs"
    if (
        cause.errno in _UNREACHABLE
        and re.search(_IPV6_ADDRESS, str(cause))
        and not re.search(_IPV4_ADDRESS, str(cause))
    ):
        return (
            "its host has only an IPv6 address, and this network has no route to it; give the subnet IPv6, or use an"
            " address with IPv4, such as that of the platform's pooler"
        )
    if isinstance(cause, ConnectionError):
        return f"the connection was lost during the login ({type_name(cause)}); check the server's log, and a proxy's"
    return f"the network failed ({type_name(cause)}); check the route, the subnet and the security group"


def _refusal(cause: asyncpg.PostgresError, sqlstate: str, renewed: bool, passwordless: bool) -> str:
    if login_refused(cause):
        if passwordless and sqlstate == "28P01":
            return _PASSWORDLESS
        refused, remedy = _LOGIN.get(sqlstate, _LOGIN["28000" if sqlstate[:2] == "28" else "28P01"])
        return refused + (_RENEWED if renewed else f"; {remedy}")
    for words, reason in _BY_TEXT.items():
        if says(cause, words):
            return reason
    return _BY_SQLSTATE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2], _ANY)
