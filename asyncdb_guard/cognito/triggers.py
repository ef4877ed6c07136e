"""`CognitoTriggers`: builds the two triggers on first use, and runs each with a deadline and public-safe errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asyncdb_guard.cognito.caching.protocol import ClaimsCache
from asyncdb_guard.cognito.caching.store import ClaimsStore, open_store
from asyncdb_guard.cognito.callbacks import (
    Callback,
    MachineCallback,
    TokenCallback,
    claims_callback,
    machine_claims_callback,
    provision_callback,
)
from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.cognito.event import (
    MACHINE,
    TriggerEvent,
    is_post_confirmation_source,
    is_token_source,
    plain_event,
    public_source,
    token_source,
    trigger_source,
)
from asyncdb_guard.cognito.invocation import CallbackRunner
from asyncdb_guard.cognito.post_confirmation import PostConfirmationTrigger
from asyncdb_guard.cognito.pre_token import PreTokenTrigger
from asyncdb_guard.cognito.public_errors import run_with_public_errors
from asyncdb_guard.emf import InvocationMetrics, publishing
from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.events import logger
from asyncdb_guard.settings.fields import OnUnavailable, choices

if TYPE_CHECKING:
    from asyncdb_guard.pool import GuardedPool

# Cognito appends a period.
_SIGN_IN_FAILED = "The sign-in could not be completed, please try again later"
_SIGN_UP_FAILED = "The sign-up could not be completed, please try again later"


_WRONG_TRIGGER = (
    "%s was called for %s. Make its function the %s trigger of the user pool (LambdaConfig), and no other trigger."
)


class CognitoTriggers:
    """Answers pre token generation and post confirmation events; lives as long as its pool.

    `claims`: `async def claims(conn, user)`, which returns a mapping, a `TokenClaims` or None; or one SQL statement,
    whose single row becomes the claims. `provision`: `async def provision(conn, user)`, or one SQL statement; it runs
    in a transaction. In a statement, `$1` is the sub, `$2` the e-mail and `$3` the attributes as jsonb. The defaults
    are the statements in LAMBDA_DATABASE_CLAIMS_SQL and LAMBDA_DATABASE_PROVISION_SQL. A claims statement that writes
    runs in a transaction, too.

    `machine_claims`: the same for a machine's token: `async def machine_claims(conn, client)`, or one SQL statement in
    which `$1` is the client ID and `$2` the scopes as text[]. The default is the statement in
    LAMBDA_DATABASE_MACHINE_CLAIMS_SQL, else machines get no claims.

    `cache`: a claims cache of your own. The default is a cache in memory, or in Redis if
    LAMBDA_DATABASE_CLAIMS_CACHE_URL is set. Entries live for LAMBDA_DATABASE_CLAIMS_CACHE_TTL_MS; 0 turns every cache
    off, except for what `stale` needs.

    `on_unavailable`: what happens to a sign-in while the database is unavailable. The default is
    LAMBDA_DATABASE_ON_UNAVAILABLE, whose own default is `deny`. `deny`: it fails.
    `unchanged`: it succeeds without claims. `stale`: it succeeds with the last claims that this user was given at this
    client, with the same groups and scopes, at most an hour ago (or the time to live, if that is longer); without such
    claims it fails. If a callback fails, the sign-in always fails.

    Nothing is read or validated before the first call, so that a wrong setting fails a request, not the process.
    """

    def __init__(
        self,
        pool: GuardedPool,
        *,
        claims: Callback | str | None = None,
        provision: Callback | str | None = None,
        machine_claims: MachineCallback | str | None = None,
        cache: ClaimsCache | None = None,
        on_unavailable: OnUnavailable | None = None,
    ) -> None:
        self._pool = pool
        self._claims = claims
        self._provision = provision
        self._machine_claims = machine_claims
        self._cache = cache
        self._given_policy = on_unavailable
        self._runner = CallbackRunner(pool)

    async def load_claims(self, event: Mapping[str, Any], context: Any = None) -> TriggerEvent:
        """Answer a pre token generation event: return the same event, with the claims as its `response`.

        The event may be any mapping, such as one of Powertools' typed events; if it is no dict, the answer is a copy.
        The event of a machine's token (`TokenGeneration_ClientCredentials`) is returned unchanged, without using the
        database, if there are no machine claims.
        Raises TriggerFailedError, or TriggerEventError if the event is not one that this trigger handles.
        """
        with publishing() as metrics:
            return await run_with_public_errors(
                "load_claims", _SIGN_IN_FAILED, self._load_claims(event, context, metrics)
            )

    async def provision_user(self, event: Mapping[str, Any], context: Any = None) -> TriggerEvent:
        """Write the user of a `PostConfirmation_ConfirmSignUp` event to the database, and return the event.

        Concurrent runs for the same user run one after the other. Any other event is returned unchanged, without
        using the database. Raises TriggerFailedError, or TriggerEventError if this is not an event.
        """
        with publishing() as metrics:
            return await run_with_public_errors(
                "provision_user", _SIGN_UP_FAILED, self._provision_user(event, context, metrics)
            )

    async def forget(self, sub: str) -> None:
        """Delete the cached claims of one user; in a shared cache, for the whole fleet.

        Raises CacheUnavailableError if the cache did not confirm it within 1.5 s: call `forget` again. Until one call
        succeeds, the other environments may use the user's claims for the rest of their time to live.
        """
        await self._store.forget(sub)

    async def forget_client(self, client_id: str) -> None:
        """Delete the cached claims of one machine; in a shared cache, for the whole fleet.

        Raises CacheUnavailableError, as `forget` does.
        """
        await self._store.forget_client(client_id)

    async def _load_claims(self, event: Mapping[str, Any], context: Any, metrics: InvocationMetrics) -> TriggerEvent:
        plain: TriggerEvent = plain_event(event)
        source = trigger_source(plain)
        if not is_token_source(source):
            logger.warning(_WRONG_TRIGGER, "load_claims", public_source(source), "pre token generation")
        trigger = self._machine_token if token_source(plain) == MACHINE else self._pre_token
        if trigger is None:
            return plain
        deadline = self._start_deadline(context)
        return await trigger.answer(plain, deadline, metrics)

    async def _provision_user(self, event: Mapping[str, Any], context: Any, metrics: InvocationMetrics) -> TriggerEvent:
        plain: TriggerEvent = plain_event(event)
        if not PostConfirmationTrigger.handles(plain):
            source = trigger_source(plain)
            if not is_post_confirmation_source(source):
                logger.warning(_WRONG_TRIGGER, "provision_user", public_source(source), "post confirmation")
            return plain
        metrics.record_provisioned(done=False)
        deadline = self._start_deadline(context)
        answered = await self._post_confirmation.answer(plain, deadline)
        metrics.record_provisioned(done=True)
        return answered

    def _start_deadline(self, context: Any) -> Deadline:
        return Deadline(self._pool.settings.handler_budget, context)

    @cached_property
    def _pre_token(self) -> PreTokenTrigger:
        return self._answer_with(claims_callback(self._claims, self._pool.settings.claims_sql))

    @cached_property
    def _machine_token(self) -> PreTokenTrigger | None:
        callback = machine_claims_callback(self._machine_claims, self._pool.settings.machine_claims_sql)
        return None if callback is None else self._answer_with(callback)

    def _answer_with(self, callback: TokenCallback) -> PreTokenTrigger:
        store, allow_unchanged = self._store, self._policy == "unchanged"
        return PreTokenTrigger(callback, self._runner, store, self._pool.events, allow_unchanged=allow_unchanged)

    @cached_property
    def _post_confirmation(self) -> PostConfirmationTrigger:
        callback = provision_callback(self._provision, self._pool.settings.provision_sql)
        return PostConfirmationTrigger(callback, self._runner, self._store)

    @cached_property
    def _store(self) -> ClaimsStore:
        return open_store(self._pool.settings, self._cache, keep_stale=self._policy == "stale")

    @property
    def _policy(self) -> str:
        policy = self._pool.settings.on_unavailable if self._given_policy is None else self._given_policy
        if policy not in choices("on_unavailable"):
            raise ConfigurationError('on_unavailable of CognitoTriggers must be "deny", "unchanged" or "stale".')
        return policy
