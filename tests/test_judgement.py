"""The decision itself, beyond what a server can be made to say: no server, no pool, no clock."""

from __future__ import annotations

import functools
import itertools

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdb_guard.errors import (
    ConfigurationError,
    ConnectFailedError,
    DeadlineExceededError,
    StatementTimeoutError,
)
from asyncdb_guard.failures import (
    Verdict,
    chain_of,
    is_lost,
    judge,
    judge_connect,
    login_refused,
    raised_by_driver,
    server_spoke,
    sqlstate_of,
    unfit,
)
from tests.support.odd_errors import WithANumber, WithoutACause, WithoutAClass, WithoutASqlstate

SUCCESS, FAILURE, NEUTRAL = Verdict.SUCCESS, Verdict.FAILURE, Verdict.NEUTRAL
REFUSED_WRITE = asyncpg.ReadOnlySQLTransactionError


def raised(error, *frames):
    """`error` as it comes out of these frames, the outermost first.

    Each is the name of the module whose code it is, or that and the `timeout` which its function was called with.
    """
    call = None
    for frame in reversed(frames):
        module, *timeout = frame if isinstance(frame, tuple) else (frame,)
        space = {"__name__": module, "call": call, "error": error}
        exec(f"def step({'timeout' if timeout else ''}):\n    call and call()\n    raise error", space)
        call = functools.partial(space["step"], *timeout)
    with pytest.raises(type(error)) as caught:
        call()
    return caught.value


def of_an_answer(sqlstate: str, severity: str | None, lost: bool, paused: bool) -> Verdict:
    """The contract's own words."""
    if sqlstate in {"57P05", "25P03"}:
        return NEUTRAL
    if severity in {"FATAL", "PANIC"}:
        return FAILURE
    if severity is None and (sqlstate[:2] == "08" or sqlstate in {"57P01", "57P02", "57P03"}):
        return FAILURE
    if lost:
        return NEUTRAL if paused else FAILURE
    return SUCCESS


def of_a_refusal(sqlstate: str) -> Verdict:
    return SUCCESS if sqlstate[:2] == "28" or sqlstate in {"3D000", "42501", "22023", "42704"} else FAILURE


SQLSTATES = st.one_of(
    st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=5, max_size=5),
    st.tuples(st.sampled_from(["08", "25P", "28", "53", "57P"]), st.text("0123456789P", min_size=3, max_size=3)).map(
        lambda parts: "".join(parts)[:5]
    ),
    st.sampled_from(["3D000", "42501", "22023", "42704", "57P01", "57P02", "57P03"]),
)


@given(
    sqlstate=SQLSTATES,
    severity=st.sampled_from([None, "ERROR", "FATAL", "PANIC"]),
    lost=st.booleans(),
    paused=st.booleans(),
)
def test_an_answer_is_judged_by_its_severity_and_by_the_session(sqlstate, severity, lost, paused):
    fields = {"C": sqlstate, "M": "whatever the language"} | ({"S": "whatever", "V": severity} if severity else {})
    error = asyncpg.PostgresError.new(fields)
    assert judge(error, lost=lost, paused=paused) is of_an_answer(sqlstate, severity, lost, paused)


@given(sqlstate=SQLSTATES)
def test_any_refusal_of_a_connect_is_a_failure_but_for_a_wrong_setting_of_ours(sqlstate):
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "whatever the language"})
    assert judge_connect(error) is of_a_refusal(sqlstate)
    assert judge_connect(error, renewed=True) is (FAILURE if sqlstate[:2] == "28" else of_a_refusal(sqlstate))


@pytest.mark.parametrize(
    ("last_words", "verdict"),
    [(None, FAILURE), ("57P01", FAILURE), ("57P02", FAILURE), ("57P05", NEUTRAL), ("25P03", NEUTRAL)],
)
def test_the_last_words_of_a_lost_session_decide(last_words, verdict):
    error = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    if last_words is not None:
        error.__cause__ = asyncpg.PostgresError.new({"C": last_words, "M": "terminating connection"})
    assert judge(error, lost=True) is verdict
    assert is_lost(error)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        pytest.param(OSError(), FAILURE, id="network"),
        pytest.param(TimeoutError(), FAILURE, id="timeout"),
        pytest.param(asyncpg.InternalClientError("out of step"), FAILURE, id="out-of-step"),
        pytest.param(asyncpg.InterfaceError("unsupported authentication method"), FAILURE, id="login-method"),
        pytest.param(asyncpg.ClientConfigurationError("a wrong argument"), NEUTRAL, id="argument"),
        pytest.param(ExceptionGroup("of a provider", [KeyError(), OSError()]), FAILURE, id="group"),
        pytest.param(ConfigurationError("The secret has no password."), NEUTRAL, id="configuration"),
        pytest.param(ConnectFailedError("The provider of credentials has none."), FAILURE, id="no-credentials"),
    ],
)
def test_a_connect_that_failed_without_the_server_is_judged(error, verdict):
    assert judge_connect(error) is verdict


def test_a_complaint_that_another_library_makes_in_asyncpgs_name_is_not_the_drivers():
    for kind in (asyncpg.InterfaceError, asyncpg.InternalClientError):
        with pytest.raises(kind) as caught:
            raise kind("not asyncpg's own")
        assert not is_lost(caught.value)
        assert judge(caught.value, lost=True, paused=True) is NEUTRAL


@pytest.mark.parametrize("lost", [False, True])
def test_an_error_that_cannot_be_looked_at_is_judged(lost):
    """Its module has a name that raises, as an error does whose module somebody wrote."""

    class Name:
        def __str__(self):
            raise ValueError("none")

    with pytest.raises(BlockingIOError) as caught:
        exec("raise BlockingIOError", {"__name__": Name()})
    assert judge(caught.value, lost=lost) is (FAILURE if lost else NEUTRAL)
    assert judge(WithoutAClass(), lost=lost) is (FAILURE if lost else NEUTRAL)

    kind = type("Odd", (Exception,), {})
    with pytest.raises(kind) as caught:
        exec("raise kind", {"__name__": Name(), "kind": kind})
    assert judge_connect(caught.value) is NEUTRAL


def test_an_error_that_was_never_raised_is_nobodys():
    assert not raised_by_driver(OSError())
    assert not is_lost(KeyError())


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([KeyError(), asyncpg.UniqueViolationError(), DeadlineExceededError("spent")], FAILURE),
        ([KeyError(), ExceptionGroup("inner", [DeadlineExceededError("spent")])], FAILURE),
        ([KeyError(), asyncpg.UniqueViolationError()], SUCCESS),
        ([KeyError(), TimeoutError()], NEUTRAL),
    ],
)
def test_a_group_is_as_bad_as_its_worst_member(errors, verdict):
    assert judge(ExceptionGroup("group", errors)) is verdict


def test_the_servers_word_is_understood_in_any_language():
    assert server_spoke(asyncpg.PostgresError.new({"S": "FATAL", "C": "57P01", "M": "terminating connection"}))
    assert server_spoke(asyncpg.PostgresError.new({"S": "SCHWERWIEGEND", "V": "FATAL", "C": "57P01", "M": "Ende"}))
    assert not server_spoke(asyncpg.PostgresError.new({"S": "FEHLER", "V": "ERROR", "C": "23505", "M": "doppelt"}))
    assert not server_spoke(WithoutACause())


class OfAnotherDriver(Exception):
    sqlstate = "23505"


@pytest.mark.parametrize("odd", [WithANumber("odd"), WithoutASqlstate("odd"), OfAnotherDriver(), KeyError(), None])
def test_an_sqlstate_has_the_form_of_one(odd):
    assert sqlstate_of(odd) is None
    assert sqlstate_of(asyncpg.PostgresError.new({"C": "23505\n", "M": ""})) is None
    assert sqlstate_of(asyncpg.PostgresError.new({"C": "23505", "M": ""})) == "23505"


def test_the_servers_word_is_found_wherever_it_stands():
    spoke = asyncpg.PostgresError.new({"S": "FATAL", "C": "57P01", "M": "terminating connection"})
    silent, earlier = asyncpg.ConnectionDoesNotExistError("lost"), asyncpg.UniqueViolationError("there already")
    assert not server_spoke(None)
    assert not server_spoke(silent)
    assert not server_spoke(ExceptionGroup("group", [silent, earlier]))
    assert server_spoke(spoke)
    assert server_spoke(ExceptionGroup("group", [KeyError(), ExceptionGroup("inner", [silent, spoke])]))
    silent.__cause__ = spoke
    wrapped = LookupError()
    wrapped.__context__ = silent
    silent.__context__ = wrapped  # in a circle
    assert server_spoke(wrapped)


@pytest.mark.parametrize(
    ("modules", "drivers"),
    [
        (["asyncpg.connection"], True),
        (["app", "asyncpg.connection", "asyncio.tasks", "ssl"], True),
        (["asyncpg.connection", "uvloop.loop"], True),
        (["app", "asyncio.tasks"], False),
        (["asyncpg.connection", "app.callback"], False),
        (["asyncpg.connection", "app.callback", "asyncio.streams"], False),
        (["asyncpg.connection", "concurrent.futures.thread"], False),  # a file that COPY reads
        (["asyncpgsa.connection"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_the_drivers_if_it_comes_from_there_or_from_the_standard_library_below(modules, drivers):
    error = raised(ConnectionResetError(), *modules)
    assert raised_by_driver(error) is drivers
    assert judge(error) is (FAILURE if drivers else NEUTRAL)
    assert judge_connect(raised(IndexError(), *modules)) is (FAILURE if drivers else NEUTRAL)


@pytest.mark.parametrize(
    ("error", "frames", "verdict"),
    [
        (TimeoutError(), [("asyncpg.connection", 0.9)], NEUTRAL),
        (TimeoutError(), [("asyncpg.connection", 1.0)], FAILURE),
        (TimeoutError(), [("asyncpg.connection", None)], FAILURE),
        (TimeoutError(), ["asyncpg.connection"], FAILURE),
        (TimeoutError(), [("app", 0.1), ("asyncpg.connection", None)], FAILURE),
        (TimeoutError(), ["app", "asyncpg.pool", ("asyncpg.connection", 0.9), ("asyncpg.protocol", 5.0)], NEUTRAL),
        (ConnectionResetError(), [("asyncpg.connection", 0.9)], FAILURE),
        (asyncpg.InterfaceError("another operation is in progress"), ["asyncpg.connection"], NEUTRAL),
    ],
)
def test_a_timeout_of_the_callers_own_is_neutral_if_it_is_shorter_than_command_timeout(error, frames, verdict):
    assert judge(raised(error, *frames), command_timeout=1.0) is verdict


def test_the_end_of_a_statement_by_our_bound_is_judged_by_what_the_driver_said():
    for cause, verdict in (
        (raised(TimeoutError(), ("asyncpg.connection", None)), FAILURE),
        (raised(TimeoutError(), ("asyncpg.connection", 0.5)), NEUTRAL),
        (asyncpg.PostgresError.new({"S": "ERROR", "V": "ERROR", "C": "57014", "M": "canceling statement"}), SUCCESS),
        (None, NEUTRAL),
    ):
        error = StatementTimeoutError("It took too long.")
        error.__cause__ = cause
        assert judge(error, command_timeout=1.0) is verdict


def test_a_deadline_says_something_once_the_block_has_had_the_session_for_long_enough():
    spent = DeadlineExceededError("spent")
    assert judge(spent, held=0.9, patience=1.0) is NEUTRAL
    assert judge(spent, held=1.0, patience=1.0) is FAILURE


def test_without_bounds_every_deadline_and_every_timeout_of_the_driver_is_a_failure():
    assert judge(DeadlineExceededError("spent")) is FAILURE
    assert judge(DeadlineExceededError("spent"), held=0.5) is FAILURE
    assert judge(raised(TimeoutError(), ("asyncpg.connection", 0.5))) is FAILURE


@pytest.mark.parametrize("kind", [asyncpg.InterfaceError, asyncpg.InternalClientError])
def test_a_complaint_of_the_drivers_tells_of_a_lost_session(kind):
    """An InterfaceError does so only if the session itself says so, too: it may be a mistake of the caller's."""
    out_of_step = kind is asyncpg.InternalClientError
    error = raised(kind("wrong"), "app", "asyncpg.connection")
    assert is_lost(error)
    assert is_lost(error, lost=False) is out_of_step
    assert judge(error) is (FAILURE if out_of_step else NEUTRAL)
    assert judge(error, lost=True) is FAILURE
    assert judge(error, lost=True, paused=True) is NEUTRAL


def test_without_an_error_the_session_decides():
    assert judge(None) is SUCCESS
    assert judge(None, lost=True) is FAILURE
    assert judge(None, lost=True, paused=True) is NEUTRAL


@pytest.mark.parametrize("lost", [False, True])
def test_an_error_of_the_blocks_own_counts_if_the_session_was_lost(lost):
    assert judge(KeyError(), lost=lost) is (FAILURE if lost else NEUTRAL)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (asyncpg.InvalidPasswordError("wrong"), True),
        (asyncpg.InvalidAuthorizationSpecificationError("no such role"), True),
        (asyncpg.ProtocolViolationError("SASL authentication failed"), True),  # PgBouncer
        (asyncpg.ProtocolViolationError(8, "SASL authentication failed"), True),
        (asyncpg.ProtocolViolationError(8, b"authentication failed"), False),
        (asyncpg.ProtocolViolationError("unsupported startup parameter"), False),
        (asyncpg.AdminShutdownError("authentication failed"), False),
        (ConnectionResetError("authentication failed"), False),
    ],
)
def test_a_refused_login_is_known_by_its_class_and_behind_pgbouncer_by_its_text(error, refused):
    assert login_refused(error) is refused


def linked(error, *, cause=None, context=None, suppressed=False):
    """`error` with what it came from."""
    error.__cause__ = cause
    error.__context__ = context
    error.__suppress_context__ = suppressed
    return error


@pytest.mark.parametrize(
    ("error", "suspicion"),
    [
        (None, None),
        (KeyError(), None),
        (asyncpg.UniqueViolationError("there already"), None),
        (REFUSED_WRITE("no"), "read_only"),
        (ExceptionGroup("group", [KeyError(), REFUSED_WRITE("no")]), "read_only"),
        (linked(LookupError(), cause=REFUSED_WRITE("no"), suppressed=True), "read_only"),
        (linked(LookupError(), context=REFUSED_WRITE("no")), "read_only"),
        (linked(LookupError(), context=REFUSED_WRITE("no"), suppressed=True), None),
        (linked(LookupError(), cause=KeyError(), context=REFUSED_WRITE("no"), suppressed=True), None),
    ],
)
def test_a_refused_write_makes_a_session_suspicious_wherever_a_traceback_would_show_it(error, suspicion):
    assert unfit(error) == suspicion


def test_errors_that_lead_to_each_other_are_told_once_each():
    first, second, third = LookupError(), KeyError(), IndexError()
    for one, other in ((first, second), (second, third), (third, second)):
        linked(one, context=other)
    assert list(itertools.islice(chain_of(first), 9)) == [first, second, third]
