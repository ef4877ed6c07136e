"""The tree of errors is the documented one, and none of their texts says more than it should."""

from __future__ import annotations

import copy
import errno
import pickle
import re
import socket
import ssl

import asyncpg
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import asyncdb_guard
from asyncdb_guard import errors
from asyncdb_guard.connect.diagnosis import connect_error
from asyncdb_guard.errors import (
    AcquireTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    ConnectFailedError,
    ConnectTimeoutError,
    DatabaseUnavailableError,
    PoolClosedError,
)
from asyncdb_guard.redaction import describe

TREE = {
    "GuardError": ("Exception",),
    "ConfigurationError": ("GuardError",),
    "PoolClosedError": ("GuardError",),
    "PoolInUseError": ("GuardError",),
    "DatabaseUnavailableError": ("GuardError",),
    "CircuitOpenError": ("DatabaseUnavailableError",),
    "ConnectFailedError": ("DatabaseUnavailableError",),
    "AcquireTimeoutError": ("DatabaseUnavailableError",),
    "ConnectTimeoutError": ("ConnectFailedError", "AcquireTimeoutError"),
    "DeadlineExceededError": ("DatabaseUnavailableError",),
    "StatementTimeoutError": ("GuardError", "TimeoutError"),
    "CacheUnavailableError": ("GuardError",),
    "TriggerFailedError": ("GuardError",),
    "TriggerEventError": ("TriggerFailedError",),
}


def test_the_tree_of_errors_is_the_documented_one():
    defined = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: tuple(base.__name__ for base in kind.__bases__) for name, kind in defined.items()} == TREE


@pytest.mark.parametrize("name", TREE)
def test_every_error_can_be_imported_from_the_package(name):
    assert getattr(asyncdb_guard, name) is getattr(errors, name)
    assert name in asyncdb_guard.__all__
    assert getattr(errors, name).__doc__


def test_one_fault_is_the_whole_text():
    assert str(ConfigurationError("POOL_MAX must be 1 to 100.")) == "POOL_MAX must be 1 to 100."


def test_several_faults_are_listed_one_a_line():
    error = ConfigurationError("First.", "Second.")
    assert str(error) == "2 settings are wrong:\n- First.\n- Second."
    assert error.faults == ("First.", "Second.")


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ConfigurationError("First.", "Second."), id="configuration"),
        pytest.param(CircuitOpenError("Open.", retry_after=2.5), id="circuit-open"),
        pytest.param(PoolClosedError("Closed."), id="pool-closed"),
    ],
)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_an_error_survives_a_copy_and_a_pickle(error, again):
    other = again(error)
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


def test_retry_after_is_none_where_nobody_knows():
    assert DatabaseUnavailableError("Down.").retry_after is None
    assert CircuitOpenError("Open.", retry_after=2.5).retry_after == 2.5


SECRETS = ("db.internal.example", "appuser", "hunter2", "app_user")
SAID = "connection to {} as {} with {}, relation {}".format(*SECRETS)


def refused(sqlstate: str, text: str = "") -> asyncpg.PostgresError:
    """The error that asyncpg makes of a server's refusal."""
    return asyncpg.PostgresError.new({"C": sqlstate, "M": text + SAID, "t": "app_user"})


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        pytest.param(refused("28P01"), "refused the password", id="password"),
        pytest.param(refused("08P01", "authentication failed"), "refused the password", id="pgbouncer"),
        pytest.param(refused("28000"), "refused the login", id="login"),
        pytest.param(refused("28999"), "refused the login", id="unheard-of-login"),
        pytest.param(refused("3D000"), "named in LAMBDA_DATABASE_URL does not exist; create it", id="database"),
        pytest.param(refused("42501"), "GRANT CONNECT ON DATABASE", id="no-right-to-connect"),
        pytest.param(refused("53300"), "the role has no connections left; lower", id="full-server"),
        pytest.param(refused("53400"), "out of resources; check", id="no-resources"),
        pytest.param(refused("57P03"), "starting up or shutting down; try again", id="starting-up"),
        pytest.param(refused("57P01"), "shutting down or failing over; try again", id="shutting-down"),
        pytest.param(refused("57P04"), "was dropped; create it", id="dropped"),
        pytest.param(refused("55000"), "does not accept connections at the moment; try again, or wake it", id="asleep"),
        pytest.param(refused("58000"), "the platform's status page", id="control-plane"),
        pytest.param(refused("58P01"), "the platform's status page", id="files-of-the-platform"),
        pytest.param(
            refused("08P01", "unsupported startup parameter: "), "set LAMBDA_DATABASE_PROXY_PROFILE=true", id="pooler"
        ),
        pytest.param(refused("0A000"), "set LAMBDA_DATABASE_PROXY_PROFILE=true", id="rds-proxy"),
        pytest.param(refused("42704"), "does not know a startup parameter; check", id="unknown-parameter"),
        pytest.param(refused("22023"), "refused the value of a startup parameter; check", id="wrong-parameter"),
        pytest.param(refused("08P01"), "refused what it was sent; check", id="protocol"),
        pytest.param(refused("08P01", "no such database: "), "check its name, and the pooler's list", id="pooler-db"),
        pytest.param(refused("08P01", "no such user: "), "check its name, and the pooler's list", id="pooler-user"),
        pytest.param(refused("08P01", "no more connections allowed "), "raise max_client_conn", id="pooler-full"),
        pytest.param(refused("08004"), "refused the connection; check its log", id="rejected"),
        pytest.param(refused("08003"), "ended during the login; check that the host", id="ended"),
        pytest.param(refused("XX000"), "check its log and the platform's status page", id="internal"),
        pytest.param(refused("XX000", "(EMAXCONNSESSION) max clients "), "port 6543", id="supavisor-full"),
        pytest.param(refused("XX000", "MaxClientsInSessionMode: "), "port 6543", id="supavisor-full-before"),
        pytest.param(refused("XX000", "Tenant or user not found "), "postgres.<project>", id="supavisor-user"),
        pytest.param(refused("99999"), "look for this SQLSTATE in its log", id="any-other"),
        pytest.param(ConnectionRefusedError(111, SAID), "nothing listens at its host and port; check", id="nobody"),
        pytest.param(socket.gaierror(-2, SAID), "could not be resolved; check the name", id="unknown-host"),
        pytest.param(ConnectionError("rejected SSL upgrade: " + SAID), "it does not support TLS; enable", id="no-tls"),
        pytest.param(ssl.SSLError(1, SAID), "the TLS handshake failed; check", id="handshake"),
        pytest.param(ConnectionResetError(104, SAID), "(ConnectionResetError); check the server's log", id="reset"),
        pytest.param(
            OSError(errno.ENETUNREACH, f"Connect call failed ('2001:db8::1', 5432, 0, 0) {SAID}"),
            "has only an IPv6 address, and this network has no route to it; give",
            id="ipv6-only",
        ),
        pytest.param(
            OSError(errno.ENETUNREACH, f"Connect call failed ('192.0.2.1', 5432) {SAID}"),
            "the network failed",
            id="ipv4",
        ),
        pytest.param(FileNotFoundError(2, SAID), "nothing listens on its Unix socket; check", id="no-socket"),
        pytest.param(OSError(113, SAID), "the network failed (OSError); check the route", id="network"),
        pytest.param(asyncpg.TargetServerAttributeNotMatched(SAID), "name another host", id="no-writer"),
        pytest.param(
            asyncpg.InterfaceError("unsupported authentication method: " + SAID), "scram-sha-256", id="login-method"
        ),
        pytest.param(
            asyncpg.InternalClientError("unexpected error while performing authentication: " + SAID),
            "scram-sha-256",
            id="login-garbage",
        ),
        pytest.param(asyncpg.InterfaceError(SAID), "lead to a PostgreSQL server", id="interface"),
        pytest.param(refused("99999 \n" + "A" * 5000), "lead to a PostgreSQL server", id="no-sqlstate"),
        pytest.param(LookupError(SAID), "the provider of the credentials failed with LookupError; see", id="provider"),
    ],
)
@pytest.mark.parametrize("renewed", [False, True], ids=["once", "renewed"])
def test_a_failed_connect_says_why_and_names_nobody(cause, reason, renewed):
    error = connect_error(cause, renewed=renewed)
    assert type(error) is ConnectFailedError
    text = str(error)
    assert text.startswith("The database could not be reached: ")
    assert reason in text
    assert ";" in text, "there is no remedy"
    sqlstate = getattr(cause, "sqlstate", "")
    assert text.endswith(f" (SQLSTATE {sqlstate})." if sqlstate and len(sqlstate) == 5 else ".")
    assert len(text) < 400
    assert text.isprintable()
    assert not any(secret in text for secret in SECRETS)
    assert error.__cause__ is cause
    assert error.retry_after is None


@pytest.mark.parametrize("sqlstate", ["28P01", "28000"])
def test_a_login_that_was_refused_twice_says_so(sqlstate):
    assert "newly fetched" in str(connect_error(refused(sqlstate), renewed=True))
    assert "newly fetched" not in str(connect_error(refused(sqlstate)))


def test_a_connect_that_took_too_long_is_a_failed_connect_and_an_acquire_timeout():
    error = connect_error(TimeoutError(SAID))
    assert type(error) is ConnectTimeoutError
    assert isinstance(error, ConnectFailedError)
    assert isinstance(error, AcquireTimeoutError)
    assert str(error) == (
        "The database could not be reached: it did not answer in time; check its address, the route and the"
        " security group, or raise LAMBDA_DATABASE_CONNECT_TIMEOUT_MS."
    )


@given(sqlstate=st.text("0123456789ABCDEFPX", min_size=5, max_size=5))
def test_whatever_the_server_said_the_text_holds_nothing_but_its_code(sqlstate):
    text = str(connect_error(refused(sqlstate)))
    assert f"(SQLSTATE {sqlstate})" in text
    assert ";" in text
    assert not any(secret in text for secret in SECRETS)


@given(sqlstate=st.text(max_size=40).filter(lambda text: not re.fullmatch("[0-9A-Z]{5}", text)))
def test_what_has_not_the_form_of_an_sqlstate_is_not_shown(sqlstate):
    for text in (str(connect_error(refused(sqlstate))), describe(refused(sqlstate))):
        assert "SQLSTATE" not in text
        assert "[" not in text
        assert text.isprintable()


def test_a_log_line_is_one_line_and_no_longer_than_it_needs_to_be():
    kind = type("Odd\nName" + "A" * 5000, (Exception,), {"__module__": "odd\nmodule"})
    error = ExceptionGroup("group", [kind() for _ in range(1000)])
    with pytest.raises(kind) as caught:
        exec(compile("raise kind", "file\nof " + "A" * 5000, "exec"), {"kind": kind})
    error.__cause__ = caught.value
    text = describe(error)
    assert text.isprintable()
    assert len(text) < 5000
    assert text.endswith("; because of more")
    assert "odd?module.Odd?Name" in text
    assert "more" not in describe(KeyError())


def test_what_openssl_says_is_shown_where_it_is_one_of_its_words():
    told = {"WRONG_VERSION_NUMBER": True, "wrong version of hunter2": False, None: False}
    for reason, shown in told.items():
        cause = ssl.SSLError(1, SAID)
        cause.reason = reason
        assert (f"({reason})" in str(connect_error(cause))) is shown


@pytest.mark.parametrize(
    ("name", "trusted", "reason"),
    [
        pytest.param("db.internal.example", False, "comes from a CA that is not trusted", id="unknown-authority"),
        pytest.param("other.example", True, "is for another host name", id="another-host"),
        pytest.param("192.0.2.7", True, "is not for this IP address", id="another-address"),
    ],
)
def test_a_certificate_that_is_refused_is_explained_without_the_host(name, trusted, reason):
    authority = trustme.CA()
    client_side = ssl.create_default_context()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.internal.example").configure_cert(server_side)
    if trusted:
        authority.configure_trust(client_side)

    error = connect_error(refused_certificate(client_side, server_side, name))
    assert str(error).startswith(f"The database could not be reached: its TLS certificate {reason}; ")
    assert name not in str(error)


def refused_certificate(client_side: ssl.SSLContext, server_side: ssl.SSLContext, name: str) -> ssl.SSLError:
    """Shake hands in memory until the client refuses the server's certificate; return that error."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error
    raise AssertionError("The client took the certificate.")
