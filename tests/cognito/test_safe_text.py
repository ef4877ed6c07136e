"""What a trigger raises is shown to the end user, and its log has no personal data."""

from __future__ import annotations

import asyncio
import functools
import json
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncdb_guard import (
    ConfigurationError,
    DatabaseSettings,
    DatabaseUnavailableError,
    GuardedPool,
    GuardError,
    TriggerEventError,
    TriggerFailedError,
)
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser, TokenClaims
from tests.cognito.conftest import ENDLESS, MakePool, returning
from tests.cognito.events import CLIENT_ID, POOL_ID, confirmation_event, id_claims, token_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster

SIGN_IN = "The sign-in could not be completed, please try again later"
SIGN_UP = "The sign-up could not be completed, please try again later"


async def key_error(conn: Any, user: CognitoUser) -> None:
    raise KeyError(user.email)


async def cancels_itself(conn: Any, user: CognitoUser) -> None:
    raise asyncio.CancelledError(user.email)


async def violates_a_constraint(conn: Any, user: CognitoUser) -> None:
    await conn.execute("INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2)", user.sub, user.email)


async def sends_the_wrong_type(conn: Any, user: CognitoUser) -> None:
    await conn.execute("SELECT $1::int", user.email)


async def runs_bad_sql(conn: Any, user: CognitoUser) -> None:
    await conn.execute(f"SELECT '{user.email}' FROM somewhere")


async def fails_in_a_group(conn: Any, user: CognitoUser) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(key_error(conn, user))
        group.create_task(runs_bad_sql(conn, user))


async def fails_in_turn(conn: Any, user: CognitoUser) -> None:
    try:
        await key_error(conn, user)
    except KeyError as error:
        raise RuntimeError(user.sub) from error


async def raises_a_trigger_error(conn: Any, user: CognitoUser) -> None:
    raise TriggerEventError(f"{user.email} is disabled")


async def raises_an_error_of_ours(conn: Any, user: CognitoUser) -> None:
    raise ConfigurationError(f"{user.email} is not in the table")


async def raises_unavailable(conn: Any, user: CognitoUser) -> None:
    raise DatabaseUnavailableError(f"{user.email} is in no region")


async def fails_because_of_an_error_of_ours(conn: Any, user: CognitoUser) -> None:
    try:
        await raises_an_error_of_ours(conn, user)
    except ConfigurationError as error:
        raise LookupError from error


async def takes_too_long(conn: Any, user: CognitoUser) -> None:
    await conn.execute(ENDLESS)


HOSTILE = [
    key_error, cancels_itself, violates_a_constraint, sends_the_wrong_type, runs_bad_sql, fails_in_a_group,
    fails_in_turn, raises_a_trigger_error, raises_an_error_of_ours, raises_unavailable,
    fails_because_of_an_error_of_ours, takes_too_long,
]  # fmt: skip


@pytest.mark.parametrize("trigger", ["load_claims", "provision_user"])
@pytest.mark.parametrize("callback", HOSTILE)
async def test_a_failing_callback_raises_public_text_and_logs_only_its_type(
    make_pool: MakePool,
    sub: str,
    callback: Any,
    trigger: str,
    caplog: pytest.LogCaptureFixture,
    server: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function")
    pool = make_pool(handler_budget_ms=300)
    triggers = CognitoTriggers(pool, claims=callback, provision=callback)
    event = token_event("2", sub=sub) if trigger == "load_claims" else confirmation_event(sub)
    with pytest.raises(TriggerFailedError) as caught:
        await getattr(triggers, trigger)(event)
    error = caught.value
    assert type(error) is TriggerFailedError
    assert str(error) == (SIGN_IN if trigger == "load_claims" else SIGN_UP)
    assert (error.__cause__, error.__context__) == (None, None)
    shown = "".join(traceback.format_exception(error))
    (record,) = [record for record in caplog.records if record.name == "asyncdb_guard"]
    assert record.getMessage().startswith(f"{trigger} failed: ")
    assert record.exc_info is None
    for personal in (sub, "ada", str(server.port), "somewhere"):
        assert personal not in record.getMessage()
    for private in (sub, "ada", str(server.port), "app_user", "SELECT", "INSERT"):
        assert private not in shown.split("asyncdb_guard.errors.TriggerFailedError")[1]
    assert await pool.fetchval("SELECT 1") == 1


async def test_outside_lambda_the_cause_is_kept(pool: GuardedPool, sub: str) -> None:
    """A test, or a developer at a desk, sees where the callback failed."""
    with pytest.raises(TriggerFailedError) as caught:
        await CognitoTriggers(pool, claims=key_error).load_claims(token_event("2", sub=sub))
    assert isinstance(caught.value.__cause__, KeyError)
    assert [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)][-1] == "key_error"


@pytest.mark.parametrize(
    "returned",
    [
        {"sub": "secret"}, {"role": float("nan")}, {"role": b"secret"}, {1: "secret"}, "secret", ["secret"],
        TokenClaims(add_scopes="secret"), TokenClaims(add_scopes=["secret scope"]), TokenClaims(groups="secret"),
        {"role": "secret" * 10_000},
    ],
)  # fmt: skip
async def test_a_refused_claim_is_logged_by_name_without_its_value(
    pool: GuardedPool, returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TriggerFailedError, match=f"^{SIGN_IN}$") as caught:
        await CognitoTriggers(pool, claims=returning(returned)).load_claims(token_event())
    assert caught.value.__context__ is None
    assert "(asyncdb_guard.cognito.values.ClaimError)" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("trigger", ["load_claims", "provision_user"])
async def test_a_callback_that_is_not_a_coroutine_function_is_logged(
    pool: GuardedPool, trigger: str, caplog: pytest.LogCaptureFixture
) -> None:
    for callback in (lambda conn, user: {}, 5, b"SELECT 1"):
        triggers = CognitoTriggers(pool, claims=callback, provision=callback)  # type: ignore[arg-type]
        with pytest.raises(TriggerFailedError):
            await getattr(triggers, trigger)(token_event() if trigger == "load_claims" else confirmation_event())
        assert "must be an `async def " in caplog.text
        caplog.clear()


async def test_a_callback_may_be_any_callable(pool: GuardedPool) -> None:
    class Callback:
        async def __call__(self, conn: Any, user: CognitoUser, answer: int = 1) -> dict[str, int]:
            return {"answer": answer}

    for callback, expected in ((Callback(), 1), (functools.partial(Callback(), answer=2), 2), (Callback().__call__, 1)):
        event = await CognitoTriggers(pool, claims=callback).load_claims(token_event())
        assert id_claims(event) == {"answer": expected}


async def test_a_wrong_setting_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TriggerFailedError, match=f"^{SIGN_IN}$"):
        await CognitoTriggers(GuardedPool(), claims=returning({})).load_claims(token_event())
    assert "LAMBDA_DATABASE_URL" in caplog.text


async def test_an_invalid_field_is_named_without_its_value(pool: GuardedPool, caplog: pytest.LogCaptureFixture) -> None:
    event = token_event("secret9")
    event["request"]["userAttributes"]["sub"] = ["secret"]
    with pytest.raises(TriggerEventError) as caught:
        await CognitoTriggers(pool, claims=returning({})).load_claims(event)
    assert str(caught.value) == "This trigger cannot handle the event: request.userAttributes.sub is missing or invalid"
    assert caught.value.__context__ is None
    assert "load_claims failed: This trigger cannot" in caplog.text
    assert "secret" not in caplog.text


async def test_a_cancelled_caller_is_cancelled(pool: GuardedPool) -> None:
    started = asyncio.Event()

    async def claims(conn: Any, user: CognitoUser) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(CognitoTriggers(pool, claims=claims).load_claims(token_event()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_system_exit_and_keyboard_interrupt_pass_through(url: str, end: type[BaseException]) -> None:
    async def claims(conn: Any, user: CognitoUser) -> None:
        raise end

    async def main() -> None:
        async with GuardedPool(DatabaseSettings(url=url)) as pool:
            await CognitoTriggers(pool, claims=claims).load_claims(token_event())

    with pytest.raises(end):
        asyncio.run(main())


async def test_a_guard_error_of_the_callback_is_not_shown(pool: GuardedPool) -> None:
    async def claims(conn: Any, user: CognitoUser) -> None:
        raise GuardError("inside")

    with pytest.raises(TriggerFailedError, match=f"^{SIGN_IN}$"):
        await CognitoTriggers(pool, claims=claims).load_claims(token_event())


# -- any event at all --------------------------------------------------------------------------------------------------

SECRETS = ("s3cret", "topsecret@example.com", "5ecretvalue")

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(SECRETS)
    | st.sampled_from([SECRETS[0] * 50, "\ud800", "\x00", "", "string"]) | st.text(max_size=8)
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.sampled_from(SECRETS), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.lists(st.sampled_from(["a", "b", *SECRETS]), max_size=3)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object in which every field may be right, odd or missing, or no object at all."""
    right_or_odd = {name: value | anything for name, value in fields.items()}
    return st.fixed_dictionaries({}, optional=right_or_odd) | st.fixed_dictionaries(dict(fields))


requests = record(
    userAttributes=record(sub=st.sampled_from(SECRETS), email=st.sampled_from(SECRETS), email_verified=anything),
    groupConfiguration=record(groupsToOverride=names, iamRolesToOverride=names, preferredRole=anything),
    scopes=names,
    clientMetadata=record(a=st.sampled_from(SECRETS)),
)
events = record(
    version=st.sampled_from(["1", "2", "3", "string", "4", 2]),
    triggerSource=st.sampled_from(
        ["TokenGeneration_HostedAuth", "TokenGeneration_ClientCredentials", "PostConfirmation_ConfirmSignUp",
         "PostConfirmation_ConfirmForgotPassword", "string", *SECRETS]
    ),
    region=st.just("eu-central-1"),
    userPoolId=st.just(POOL_ID) | st.sampled_from(SECRETS),
    userName=st.sampled_from(SECRETS),
    callerContext=record(clientId=st.just(CLIENT_ID)),
    request=requests,
    response=anything | st.just({"claimsOverrideDetails": None}) | st.just({"claimsAndScopeOverrideDetails": []}),
)  # fmt: skip


@pytest.fixture(scope="module")
def any_events(server: Cluster) -> Iterator[tuple[asyncio.Runner, CognitoTriggers]]:
    """Triggers on one loop for many events, whose callbacks let the database see what an event has."""

    async def claims(conn: Any, user: CognitoUser) -> Any:
        await conn.fetchrow(
            "SELECT $1::text, $2::text, $3::jsonb", user.sub, user.email, json.dumps(dict(user.attributes))
        )
        return TokenClaims({"email": user.email, "groups": list(user.groups)}, groups=user.groups or None)

    provision = "SELECT set_config('test.sub', $1, true), $2::text, $3"
    with asyncio.Runner() as runner:
        pool = GuardedPool(DatabaseSettings(url=server.url(), session_reset="never"))
        yield runner, CognitoTriggers(pool, claims=claims, provision=provision)
        runner.run(pool.close())


async def outcome_of(work: Awaitable[Any]) -> Any:
    """The answer, or a TriggerFailedError; anything else is raised."""
    try:
        return await work
    except TriggerFailedError as error:
        return error


@pytest.mark.timeout(300)
@settings(
    max_examples=1500 if settings.get_current_profile_name() == "thorough" else 300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(event=events | anything)
@pytest.mark.slow
def test_any_event_is_answered_or_refused_without_showing_a_value(
    any_events: tuple[asyncio.Runner, CognitoTriggers], caplog: pytest.LogCaptureFixture, event: Any
) -> None:
    """Both triggers see it."""
    runner, triggers = any_events
    caplog.clear()
    for trigger in (triggers.load_claims, triggers.provision_user):
        outcome = runner.run(outcome_of(trigger(event)))
        if isinstance(outcome, TriggerFailedError):
            assert outcome.__context__ is None
        else:
            assert outcome is event
        for secret in SECRETS:
            assert secret not in caplog.text
            assert not isinstance(outcome, TriggerFailedError) or secret not in str(outcome)


async def test_a_guard_error_shared_by_followers_is_logged_without_its_text(
    pool: GuardedPool, sub: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def claims(conn: Any, user: CognitoUser) -> Any:
        await asyncio.sleep(0.01)
        raise DatabaseUnavailableError(f"{user.email} is in no region")

    triggers = CognitoTriggers(pool, claims=claims)
    calls = [triggers.load_claims(token_event("2", sub=sub)) for _ in range(3)]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, TriggerFailedError)
    assert "ada@" not in caplog.text
    assert caplog.text.count("DatabaseUnavailableError at ") == 3


class OddError(Exception):
    """Has what asyncpg's errors have, and something else in it."""

    def __init__(self, sqlstate: object) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize("sqlstate", ["ada@example.com", ["ada@example.com"]])
async def test_only_a_database_errors_sqlstate_is_logged(
    pool: GuardedPool, sub: str, sqlstate: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def claims(conn: Any, user: CognitoUser) -> Any:
        raise OddError(sqlstate)

    with pytest.raises(TriggerFailedError) as caught:
        await CognitoTriggers(pool, claims=claims).load_claims(token_event("2", sub=sub))
    assert caught.value.__context__ is None
    assert "OddError" in caplog.text
    assert "ada@" not in caplog.text
