"""`CognitoTriggers`: the two triggers, each under one deadline and with a text that anybody may read."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from asyncdb_guard.cognito.cache import ClaimsCache
from asyncdb_guard.cognito.callbacks import Callback, claims_callback, provision_callback, source_of
from asyncdb_guard.cognito.claims import Overrides, answer, check
from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.cognito.event import (
    CONFIRM_SIGN_UP,
    MACHINE,
    CognitoUser,
    TokenRequest,
    TriggerEvent,
    read_confirmation_event,
    read_token_event,
    trigger_source,
)
from asyncdb_guard.cognito.invocation import CallbackRunner, SessionLostError
from asyncdb_guard.cognito.public_errors import safely
from asyncdb_guard.cognito.store import ClaimsStore, open_store
from asyncdb_guard.emf import LoadMetrics
from asyncdb_guard.errors import ConfigurationError, DatabaseUnavailableError, GuardError
from asyncdb_guard.events import CacheHit, CacheMiss, logger
from asyncdb_guard.redaction import describe

if TYPE_CHECKING:
    from asyncdb_guard.pool import GuardedPool

OnUnavailable: TypeAlias = Literal["deny", "unchanged", "stale"]

# Cognito puts a period behind them.
_NO_SIGN_IN = "The sign-in could not be completed, please try again later"
_NO_SIGN_UP = "The sign-up could not be completed, please try again later"


class TransactionEndedError(GuardError):
    """A provision callback sent a COMMIT or a ROLLBACK of its own: what it wrote after that had no lock."""


class CognitoTriggers:
    """Answers pre token generation and post confirmation events; lives as long as its pool.

    `claims`: `async def claims(conn, user)`, which returns a mapping, a `TokenClaims` or None, or one SQL statement
    whose one row becomes the claims. `provision`: `async def provision(conn, user)`, or one SQL statement; it runs in
    a transaction. In statements, `$1` is the sub, `$2` the e-mail and `$3` the attributes as jsonb. What is not given
    is the statement in LAMBDA_DATABASE_CLAIMS_SQL or LAMBDA_DATABASE_PROVISION_SQL.

    `cache`: where claims are kept, in place of what the settings say. Without it they are kept in memory, or in Redis
    with LAMBDA_DATABASE_CLAIMS_CACHE_URL, for LAMBDA_DATABASE_CLAIMS_CACHE_TTL_MS; 0 turns any cache off, and only what
    `stale` needs is kept.

    `on_unavailable`: what becomes of a sign-in while the database can't be had. `deny` it (default), let it pass
    `unchanged`, without any claims, or with `stale` ones: what this user was last given at this client, with the same
    groups and scopes, at most an hour ago (or the time to live, if that is longer), else deny. A callback that fails
    is always a denial.

    Nothing is read or checked before the first call, so that a wrong setting is an answer and no crash.
    """

    def __init__(
        self,
        pool: GuardedPool,
        *,
        claims: Callback | str | None = None,
        provision: Callback | str | None = None,
        cache: ClaimsCache | None = None,
        on_unavailable: OnUnavailable = "deny",
    ) -> None:
        self._pool = pool
        self._runner = CallbackRunner(pool)
        self._claims = claims
        self._provision = provision
        self._cache = cache
        self._on_unavailable = on_unavailable

    async def load_claims(self, event: TriggerEvent, context: Any = None) -> TriggerEvent:
        """Answer a pre token generation event: the same event, with the user's claims as its `response`.

        A machine's token (`TokenGeneration_ClientCredentials`) has no user: its event is returned as it is.
        Raises TriggerFailedError, and TriggerEventError where the event is none that this trigger handles.
        """
        metrics = LoadMetrics()
        try:
            return await safely("load_claims", _NO_SIGN_IN, self._load_claims(event, context, metrics))
        except BaseException:  # a SystemExit denies it, too
            metrics.failed()
            raise
        finally:
            metrics.publish()

    async def provision_user(self, event: TriggerEvent, context: Any = None) -> TriggerEvent:
        """Write the user of a `PostConfirmation_ConfirmSignUp` event to the database, and return the event.

        Runs of the same user wait for one another. Any other event is returned untouched, without a look at the
        database. Raises TriggerFailedError, and TriggerEventError where this is no event.
        """
        return await safely("provision_user", _NO_SIGN_UP, self._provision_user(event, context))

    async def forget(self, sub: str) -> None:
        """Drop the cached claims of one user, in the shared cache for the whole fleet."""
        await self._store.forget(sub)

    async def _load_claims(self, event: TriggerEvent, context: Any, metrics: LoadMetrics) -> TriggerEvent:
        if trigger_source(event) == MACHINE:
            return event
        request = read_token_event(event)
        deadline = Deadline(self._pool.settings.handler_budget, context)
        overrides = await self._overrides(request, deadline, metrics)
        if overrides is not None:
            event["response"] = answer(overrides, request)
        return event

    async def _overrides(self, request: TokenRequest, deadline: Deadline, metrics: LoadMetrics) -> Overrides | None:
        """The user's claims, or None if the tokens shall stay as they are."""
        callback = self._claims_callback
        store = self._store
        source = source_of(callback)

        async def load() -> Overrides:
            metrics.looked_up(miss=True)
            self._pool.events.emit(CacheMiss())
            return check(await self._ask(callback, request.user, deadline, metrics), request.user)

        metrics.looked_up(miss=False)
        try:
            overrides, kept = await store.get(request, source, load, deadline)
        except DatabaseUnavailableError as error:
            if self._on_unavailable == "deny":
                raise
            stale = await store.last_known(request, source) if self._on_unavailable == "stale" else None
            if stale is None and self._on_unavailable == "stale":
                raise
            logger.warning("load_claims answers %s: %s", self._on_unavailable, describe(error))
            return stale
        if kept:
            self._pool.events.emit(CacheHit())
        return overrides

    async def _ask(self, callback: Callback, user: CognitoUser, deadline: Deadline, metrics: LoadMetrics) -> Any:
        async def work(conn: Any) -> Any:
            return await callback(conn, user)

        try:
            return await self._runner.with_connection(deadline, work, metrics)
        except SessionLostError:
            logger.info("The session was lost while claims were read; reading them once more.")
        return await self._runner.with_connection(deadline, work, metrics)

    async def _provision_user(self, event: TriggerEvent, context: Any) -> TriggerEvent:
        if trigger_source(event) != CONFIRM_SIGN_UP:
            return event
        user = read_confirmation_event(event)
        callback = self._provision_callback
        store = self._store  # a wrong setting must show before anything is written
        deadline = Deadline(self._pool.settings.handler_budget, context)

        async def work(conn: Any) -> None:
            # Cognito's tries can overlap: one that looks first and writes then must not look in between. Under
            # repeatable read, which a role may have by default, it would look at what was there before its lock.
            async with conn.transaction(isolation="read_committed"):
                await conn.execute("SELECT pg_advisory_xact_lock($1)", _lock(user))
                await callback(conn, user)
                if not conn.is_in_transaction():
                    raise TransactionEndedError("The callback ended the transaction in which it runs.")
                # After an error that the callback swallowed, COMMIT would roll back and not say so.
                await conn.execute("SELECT 1")

        await self._runner.with_connection(deadline, work)
        await store.forget(user.sub)
        return event

    @cached_property
    def _store(self) -> ClaimsStore:
        if self._on_unavailable not in get_args(OnUnavailable):
            raise ConfigurationError("on_unavailable of CognitoTriggers must be 'deny', 'unchanged' or 'stale'.")
        return open_store(self._pool.settings, self._cache, keep_stale=self._on_unavailable == "stale")

    @cached_property
    def _claims_callback(self) -> Callback:
        return claims_callback(self._claims, self._pool.settings.claims_sql)

    @cached_property
    def _provision_callback(self) -> Callback:
        return provision_callback(self._provision, self._pool.settings.provision_sql)


def _lock(user: CognitoUser) -> int:
    """The advisory lock for one user, as PostgreSQL takes it: a signed number of 64 bits."""
    digest = hashlib.sha256(f"asyncdb_guard provision {user.user_pool_id} {user.sub}".encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big", signed=True)
