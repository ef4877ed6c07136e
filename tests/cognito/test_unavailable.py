"""`on_unavailable`: what happens to a sign-in while the database is unavailable."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import TYPE_CHECKING, Any

import pytest

from asyncdb_guard import DatabaseSettings, DatabaseUnavailableError, GuardedPool, TriggerFailedError
from asyncdb_guard.cognito import CognitoTriggers, CognitoUser, MemoryCache
from asyncdb_guard.cognito.caching.plain import PlainBackend
from asyncdb_guard.cognito.caching.store import ClaimsStore
from asyncdb_guard.cognito.event import read_token_event
from tests.cognito.conftest import Context, MakePool, returning, role_of
from tests.cognito.events import id_claims, token_event

if TYPE_CHECKING:
    from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy

DOWN = "postgresql://nobody@127.0.0.1:1/none"


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> tuple[float, float]:
        return self.seconds, self.seconds


async def outcome(triggers: CognitoTriggers, event: dict[str, Any], context: Any = None) -> Any:
    """The claims, "unchanged" or "denied"."""
    before = copy.deepcopy(event)
    try:
        answered = await triggers.load_claims(event, context)
    except TriggerFailedError:
        return "denied"
    return "unchanged" if answered == before else id_claims(answered)


@pytest.mark.parametrize(("policy", "expected"), [("deny", "denied"), ("unchanged", "unchanged"), ("stale", "denied")])
async def test_without_any_database(make_pool: MakePool, policy: Any, expected: str) -> None:
    triggers = CognitoTriggers(make_pool(url=DOWN), claims=role_of, on_unavailable=policy)
    for _ in range(5):  # the last ones are refused by the breaker
        assert await outcome(triggers, token_event()) == expected


async def slow(conn: Any, user: CognitoUser) -> None:
    await conn.execute("SELECT pg_sleep(20)")


async def slow_for_the_server(conn: Any, user: CognitoUser) -> None:
    await conn.execute("SET LOCAL statement_timeout = 20; SELECT pg_sleep(20)")


async def waiting_elsewhere(conn: Any, user: CognitoUser) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("claims", [slow, slow_for_the_server, waiting_elsewhere])
async def test_a_statement_or_a_callback_out_of_time_counts_as_unavailable(make_pool: MakePool, claims: Any) -> None:
    pool = make_pool(handler_budget_ms=500, command_timeout_ms=100)
    triggers = CognitoTriggers(pool, claims=claims, on_unavailable="unchanged")
    assert await outcome(triggers, token_event()) == "unchanged"


async def test_no_time_at_all_counts_as_unavailable(make_pool: MakePool) -> None:
    triggers = CognitoTriggers(make_pool(), claims=slow, on_unavailable="unchanged")
    assert await outcome(triggers, token_event(), Context(0)) == "unchanged"


async def raises_key_error(conn: Any, user: CognitoUser) -> None:
    raise KeyError("role")


async def raises_os_error(conn: Any, user: CognitoUser) -> None:
    raise ConnectionRefusedError("its own HTTP call")


async def raises_timeout(conn: Any, user: CognitoUser) -> None:
    raise TimeoutError("its own HTTP call")


async def violates(conn: Any, user: CognitoUser) -> None:
    await conn.execute("SELECT 1/0")


async def misuses(conn: Any, user: CognitoUser) -> None:
    await asyncio.gather(conn.execute("SELECT pg_sleep(0.05)"), conn.execute("SELECT 1"))


@pytest.mark.parametrize("policy", ["unchanged", "stale"])
@pytest.mark.parametrize(
    "claims",
    [raises_key_error, raises_os_error, raises_timeout, violates, misuses, returning({"sub": "x"}), returning(5),
     "SELECT nothing", "no SQL", 5],
)  # fmt: skip
async def test_a_callback_that_fails_is_always_a_denial(make_pool: MakePool, claims: Any, policy: Any) -> None:
    assert await outcome(CognitoTriggers(make_pool(), claims=claims, on_unavailable=policy), token_event()) == "denied"


async def asks_another_pool(conn: Any, user: CognitoUser) -> None:
    async with GuardedPool(DatabaseSettings(url=DOWN, breaker_fail_max=1)) as other:
        with contextlib.suppress(DatabaseUnavailableError):
            await other.ping()
        await other.ping()  # its circuit is open


async def test_another_pool_of_the_callbacks_counts_as_unavailable_too(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    triggers = CognitoTriggers(make_pool(), claims=asks_another_pool, on_unavailable="unchanged")
    assert await outcome(triggers, token_event()) == "unchanged"
    assert "The circuit is open" in caplog.text


@pytest.mark.parametrize("policy", ["unchanged", "stale"])
async def test_a_missing_callback_or_a_wrong_setting_is_always_a_denial(
    make_pool: MakePool, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await outcome(CognitoTriggers(make_pool(), on_unavailable=policy), token_event()) == "denied"
    assert "Pass claims= to CognitoTriggers, or set claims_sql (LAMBDA_DATABASE_CLAIMS_SQL)" in caplog.text


async def test_an_unknown_policy_is_a_denial_that_says_so(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    triggers = CognitoTriggers(make_pool(), claims=role_of, on_unavailable="ignore")  # type: ignore[arg-type]
    assert await outcome(triggers, token_event()) == "denied"
    assert 'on_unavailable of CognitoTriggers must be "deny", "unchanged" or "stale"' in caplog.text


async def test_a_store_without_stale_claims_has_none() -> None:
    store = ClaimsStore(PlainBackend(MemoryCache()), ttl=0, keep_stale=False)
    assert await store.entry(read_token_event(token_event()), "").read_stale() is None


class Stale:
    """Triggers with stale claims, a database behind a proxy that can go, and a cache whose time is moved by hand."""

    def __init__(self, make_pool: MakePool, proxy: TcpProxy, url: str, **settings: Any) -> None:
        self.proxy = proxy
        self.clock = Clock()
        self.returned: Any = {"role": "admin"}
        self.triggers = CognitoTriggers(
            make_pool(url=url, breaker_fail_max=100, **settings),
            claims=self._claims,
            cache=MemoryCache(now=self.clock),
            on_unavailable="stale",
        )

    async def _claims(self, conn: Any, user: CognitoUser) -> Any:
        await conn.execute("SELECT 1")
        if isinstance(self.returned, Exception):
            raise self.returned
        return self.returned

    def break_down(self) -> None:
        self.proxy.refuse = True
        self.proxy.reset_all()

    async def sign_in(self, **changes: Any) -> Any:
        return await outcome(self.triggers, token_event(**{"sub": "s"} | changes))


@pytest.fixture
def stale(make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str) -> Stale:
    return Stale(make_pool, proxy, url_via_tcp_proxy)


async def test_stale_claims_serve_while_the_database_is_gone_and_no_longer(stale: Stale) -> None:
    assert await stale.sign_in() == {"role": "admin"}
    stale.break_down()
    stale.clock.seconds += 61
    assert await stale.sign_in() == {"role": "admin"}
    stale.clock.seconds += 3500
    assert await stale.sign_in() == {"role": "admin"}
    stale.clock.seconds += 60  # an hour is over
    assert await stale.sign_in() == "denied"


async def test_stale_claims_are_used_only_during_an_outage(stale: Stale) -> None:
    await stale.sign_in()
    stale.returned = {"role": "user"}
    stale.clock.seconds += 61
    assert await stale.sign_in() == {"role": "user"}
    stale.break_down()
    stale.clock.seconds += 61
    assert await stale.sign_in() == {"role": "user"}


@pytest.mark.parametrize(("ttl", "age"), [(0, 3600), (1000, 3600), (7_200_000, 7200)])
async def test_stale_claims_have_an_age_limit(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, ttl: int, age: float
) -> None:
    stale = Stale(make_pool, proxy, url_via_tcp_proxy, claims_cache_ttl_ms=ttl)
    await stale.sign_in()
    stale.break_down()
    stale.clock.seconds += age - 0.5
    assert await stale.sign_in() == {"role": "admin"}
    stale.clock.seconds += 0.5
    assert await stale.sign_in() == "denied"


@pytest.mark.parametrize(
    "change",
    [
        {"sub": "another"}, {"groupConfiguration": {"groupsToOverride": []}}, {"scopes": ["openid"]},
        {"groupConfiguration": {"groupsToOverride": ["editors"], "iamRolesToOverride": ["arn:aws:iam::1:role/f"]}},
        {"version": "1"}, {"version": "3"},
    ],
)  # fmt: skip
async def test_stale_claims_are_never_those_of_another_context(stale: Stale, change: dict[str, Any]) -> None:
    await stale.sign_in()
    stale.break_down()
    assert await stale.sign_in(**change) == "denied"


@pytest.mark.parametrize("field", ["userPoolId", "callerContext"])
async def test_stale_claims_stay_with_their_user_pool_and_client(stale: Stale, field: str) -> None:
    await stale.sign_in()
    stale.break_down()
    elsewhere = token_event(sub="s") | {field: {"clientId": "another"} if field == "callerContext" else "another"}
    assert await outcome(stale.triggers, elsewhere) == "denied"


@pytest.mark.parametrize("ttl", [0, 60_000])
@pytest.mark.parametrize(
    "change",
    [
        {"source": "TokenGeneration_RefreshTokens"}, {"clientMetadata": {"a": "b"}},
        {"userAttributes": {"sub": "s", "email": "new@example.com"}},
    ],
)  # fmt: skip
async def test_a_refresh_finds_the_claims_of_the_sign_in(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str, change: dict[str, Any], ttl: int
) -> None:
    stale = Stale(make_pool, proxy, url_via_tcp_proxy, claims_cache_ttl_ms=ttl)
    assert await stale.sign_in(source="TokenGeneration_Authentication") == {"role": "admin"}
    stale.break_down()
    assert await stale.sign_in(**change) == {"role": "admin"}


async def test_stale_claims_are_the_last_ones_whatever_they_were_asked_for(stale: Stale) -> None:
    await stale.sign_in(source="TokenGeneration_Authentication")
    stale.returned = {"role": "user"}
    await stale.sign_in(source="TokenGeneration_RefreshTokens")
    stale.break_down()
    stale.clock.seconds += 61
    assert await stale.sign_in(source="TokenGeneration_Authentication") == {"role": "user"}


async def test_with_the_cache_off_stale_claims_are_used_only_during_an_outage(
    make_pool: MakePool, proxy: TcpProxy, url_via_tcp_proxy: str
) -> None:
    stale = Stale(make_pool, proxy, url_via_tcp_proxy, claims_cache_ttl_ms=0)
    assert await stale.sign_in() == {"role": "admin"}
    stale.returned = {"role": "user"}
    assert await stale.sign_in() == {"role": "user"}
    stale.break_down()
    assert await stale.sign_in() == {"role": "user"}


@pytest.mark.parametrize("returned", [None, {}, KeyError("disabled"), {"sub": "x"}])
async def test_revoked_claims_do_not_come_back_as_stale_ones(stale: Stale, returned: Any) -> None:
    """An empty answer and a failed callback revoke, too."""
    await stale.sign_in()
    stale.clock.seconds += 61
    stale.returned = returned
    await stale.sign_in()
    stale.break_down()
    assert await stale.sign_in() == "denied"


async def test_forgotten_claims_are_not_stale_either(stale: Stale) -> None:
    await stale.sign_in()
    await stale.triggers.forget("s")
    stale.break_down()
    assert await stale.sign_in() == "denied"


@pytest.mark.parametrize(("policy", "answer"), [("unchanged", "unchanged tokens"), ("stale", "stale claims")])
async def test_a_degraded_answer_is_logged_as_a_warning(
    stale: Stale, make_pool: MakePool, policy: str, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    await stale.sign_in()
    stale.break_down()
    stale.clock.seconds += 61
    if policy == "stale":
        await stale.sign_in()
    else:
        await outcome(CognitoTriggers(make_pool(url=DOWN), claims=role_of, on_unavailable="unchanged"), token_event())
    (record,) = [record for record in caplog.records if record.name == "asyncdb_guard"]
    assert record.levelname == "WARNING"
    assert f"load_claims answered with {answer}" in record.getMessage()
