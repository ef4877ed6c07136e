"""`provision_user`: one transaction, only for a confirmed sign-up, and safe to repeat."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import TriggerEventError, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser
from tests.cognito.conftest import MakePool, role_of
from tests.cognito.events import confirmation_event, id_claims, token_event

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

INSERT = "INSERT INTO app_user (cognito_sub, email, attributes) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"


async def look_then_write(conn: Any, user: CognitoUser) -> None:
    """What goes wrong when two of them overlap."""
    if await conn.fetchval("SELECT count(*) FROM app_user WHERE cognito_sub = $1", user.sub) == 0:
        await conn.execute("SELECT pg_sleep(0.02)")
        await conn.execute("INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2)", user.sub, user.email)


@pytest.mark.parametrize("provision", [INSERT, look_then_write], ids=["statement", "callback"])
@pytest.mark.parametrize("together", [False, True])
async def test_three_runs_equal_one(make_pool: MakePool, sub: str, provision: Any, together: bool) -> None:
    new = str(uuid.uuid4())
    pools = [make_pool() for _ in range(3)]  # three environments
    runs = [CognitoTriggers(pool, provision=provision).provision_user(confirmation_event(new)) for pool in pools]
    if together:
        events = await asyncio.gather(*runs)
    else:
        events = [await run for run in runs]
    assert events == [confirmation_event(new)] * 3
    rows = await pools[0].fetch("SELECT email FROM app_user WHERE cognito_sub = $1", new)
    assert [row["email"] for row in rows] == ["ada@example.com"]


SLOW_INSERT = """
    INSERT INTO app_user (cognito_sub, email) SELECT $1::uuid, $2 FROM pg_sleep(0.05) ON CONFLICT DO NOTHING
"""


@pytest.mark.parametrize("provision", [SLOW_INSERT, look_then_write], ids=["statement", "callback"])
async def test_three_at_once_equal_one_whatever_isolation_the_role_has(
    make_pool: MakePool, sub: str, role: str, server: Cluster, provision: Any
) -> None:
    server.psql(f"ALTER ROLE {role} SET default_transaction_isolation = 'repeatable read'")
    pool = make_pool(pool_max=3)
    triggers = CognitoTriggers(pool, provision=provision)
    new = str(uuid.uuid4())
    await asyncio.gather(*(triggers.provision_user(confirmation_event(new)) for _ in range(3)))
    assert pool.stats()["connects"] == 3
    assert await pool.fetchval("SELECT count(*) FROM app_user WHERE cognito_sub = $1", new) == 1


async def test_the_event_comes_back_untouched(pool: GuardedPool, sub: str) -> None:
    event = confirmation_event()
    before = copy.deepcopy(event)
    assert await CognitoTriggers(pool, provision=INSERT).provision_user(event) is event
    assert event == before


@pytest.mark.parametrize(
    "source",
    ["PostConfirmation_ConfirmForgotPassword", "PostConfirmation_Later", "TokenGeneration_Authentication", "string"],
)
async def test_other_sources_pass_untouched_and_without_the_database(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, source: str
) -> None:
    event = confirmation_event(source=source)
    del event["request"]["userAttributes"]["sub"]
    before = copy.deepcopy(event)
    assert await CognitoTriggers(make_pool(url=url_via_tcp_proxy), provision=INSERT).provision_user(event) is event
    assert event == before
    assert proxy.accepted == 0


@pytest.mark.parametrize("event", [None, [], "event", {}, {"triggerSource": None}])
async def test_what_is_no_event_is_refused(pool: GuardedPool, event: Any) -> None:
    with pytest.raises(TriggerEventError):
        await CognitoTriggers(pool, provision=INSERT).provision_user(event)


async def test_a_confirmation_without_a_sub_is_refused(pool: GuardedPool) -> None:
    event = confirmation_event()
    del event["request"]["userAttributes"]["sub"]
    with pytest.raises(TriggerEventError, match=r"request\.userAttributes\.sub"):
        await CognitoTriggers(pool, provision=INSERT).provision_user(event)


async def test_a_callback_that_fails_leaves_nothing(pool: GuardedPool, sub: str) -> None:
    new = str(uuid.uuid4())

    async def provision(conn: Any, user: CognitoUser) -> None:
        await conn.execute("INSERT INTO app_user (cognito_sub) VALUES ($1)", user.sub)
        raise KeyError(user.email)

    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, provision=provision).provision_user(confirmation_event(new))
    assert await pool.fetchval("SELECT count(*) FROM app_user WHERE cognito_sub = $1", new) == 0


async def test_a_swallowed_error_is_a_failure(pool: GuardedPool, sub: str, caplog: pytest.LogCaptureFixture) -> None:
    """PostgreSQL answers COMMIT with a ROLLBACK then, and no error."""

    async def provision(conn: Any, user: CognitoUser) -> None:
        await conn.execute("INSERT INTO app_user (cognito_sub) VALUES ($1)", user.sub)
        with contextlib.suppress(Exception):
            await conn.execute("SELECT 1/0")

    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, provision=provision).provision_user(confirmation_event())
    assert "went on after an error in its transaction" in caplog.text


async def test_an_existing_row_is_logged_with_its_remedy(
    pool: GuardedPool, sub: str, caplog: pytest.LogCaptureFixture
) -> None:
    statement = "INSERT INTO app_user (cognito_sub, email) VALUES ($1, $2)"
    with pytest.raises(TriggerFailedError, match=r"^The sign-up could not be completed, please try again later$"):
        await CognitoTriggers(pool, provision=statement).provision_user(confirmation_event(sub))
    assert "UniqueViolationError [23505]" in caplog.text
    assert "ON CONFLICT DO NOTHING" in caplog.text
    assert sub not in caplog.text
    assert "ada@example.com" not in caplog.text


async def test_a_lost_session_is_not_tried_again(pool: GuardedPool, sub: str, role: str, observer: Any) -> None:
    asked = 0

    async def provision(conn: Any, user: CognitoUser) -> None:
        nonlocal asked
        asked += 1
        await observer.terminate(user=role)
        await conn.execute("SELECT 1")

    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, provision=provision).provision_user(confirmation_event())
    assert asked == 1


async def test_provisioning_forgets_the_user(pool: GuardedPool, sub: str) -> None:
    promote = "UPDATE app_user SET role = 'owner' WHERE cognito_sub = $1"
    triggers = CognitoTriggers(pool, claims=role_of, provision=promote)
    assert id_claims(await triggers.load_claims(token_event("2", sub=sub))) == {"role": "admin"}
    await triggers.provision_user(confirmation_event(sub))
    assert id_claims(await triggers.load_claims(token_event("2", sub=sub))) == {"role": "owner"}


async def test_an_open_circuit_refuses_at_once(make_pool: MakePool, heard: list[str]) -> None:
    pool = make_pool(url="postgresql://nobody@127.0.0.1:1/none", breaker_fail_max=1)
    for _ in range(2):
        with pytest.raises(TriggerFailedError):
            await CognitoTriggers(pool, provision=INSERT).provision_user(confirmation_event())
    assert heard == ["circuit_opened", "circuit_rejected"]


async def test_users_do_not_wait_for_one_another(make_pool: MakePool, sub: str) -> None:
    inside = asyncio.Barrier(2)

    async def provision(conn: Any, user: CognitoUser) -> None:
        await inside.wait()

    triggers = CognitoTriggers(make_pool(pool_max=2), provision=provision)
    await asyncio.gather(*(triggers.provision_user(confirmation_event()) for _ in range(2)))


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
async def test_a_callback_that_ends_its_transaction_is_a_failure(
    pool: GuardedPool, sub: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def provision(conn: Any, user: Any) -> None:
        await conn.execute("UPDATE app_user SET runs = runs + 1")
        await conn.execute(end)

    with pytest.raises(TriggerFailedError):
        await CognitoTriggers(pool, provision=provision).provision_user(confirmation_event(sub=sub))
    assert "The callback ended its transaction" in caplog.text
    assert await pool.fetchval("SELECT 1") == 1
