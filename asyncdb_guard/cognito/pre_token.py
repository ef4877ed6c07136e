"""The pre token generation trigger: from Cognito's event to the claims in its answer."""

from __future__ import annotations

from asyncdb_guard.cognito.caching.single_flight import Lead
from asyncdb_guard.cognito.caching.store import ClaimsEntry, ClaimsStore, LoadedClaims
from asyncdb_guard.cognito.callbacks import TokenCallback, callback_id
from asyncdb_guard.cognito.claims import Overrides, build_response, check_claims
from asyncdb_guard.cognito.deadline import Deadline
from asyncdb_guard.cognito.event import Subject, TriggerEvent, read_token_event
from asyncdb_guard.cognito.invocation import CallbackRunner, SessionLostError
from asyncdb_guard.cognito.outcome import Outcome, capture
from asyncdb_guard.cognito.statements import refusal
from asyncdb_guard.emf import InvocationMetrics
from asyncdb_guard.errors import DatabaseUnavailableError
from asyncdb_guard.events import CacheHit, CacheMiss, Events, logger
from asyncdb_guard.failure_report import report


class PreTokenTrigger:
    """Answers pre token generation events of users, or of machines, with their claims; lives as long as its
    `CognitoTriggers`.
    """

    def __init__(
        self,
        callback: TokenCallback,
        runner: CallbackRunner,
        store: ClaimsStore,
        events: Events,
        *,
        allow_unchanged: bool,
    ) -> None:
        """`allow_unchanged`: leave the tokens unchanged while the database is unavailable.

        Otherwise the sign-in fails then, unless `store` keeps stale claims and has some of this user or machine.
        """
        self._callback = callback
        self._runner = runner
        self._store = store
        self._events = events
        self._allow_unchanged = allow_unchanged

    async def answer(self, event: TriggerEvent, deadline: Deadline, metrics: InvocationMetrics) -> TriggerEvent:
        """Set the event's `response` to the claims, and return the event.

        Raises TriggerEventError, ClaimError, DatabaseUnavailableError or what the callback raised.
        """
        request = read_token_event(event)
        entry = self._store.entry(request, callback_id(self._callback))
        overrides = await self._get_overrides(entry, deadline, metrics)
        if overrides is not None:
            event["response"] = build_response(overrides, request)
        return event

    async def _get_overrides(
        self, entry: ClaimsEntry, deadline: Deadline, metrics: InvocationMetrics
    ) -> Overrides | None:
        """Return the claims, stale claims while the database is unavailable, or None for unchanged tokens."""
        metrics.record_lookup(miss=False)
        try:
            claims = await self._get_claims(entry, deadline, metrics)
        except DatabaseUnavailableError as error:
            stale = await entry.read_stale()
            if stale is None and not self._allow_unchanged:
                raise
            metrics.record_degraded()
            result = "unchanged tokens" if stale is None else "stale claims"
            failure = report(error)
            logger.warning(
                "load_claims answered with %s, as the database is unavailable: %s",
                result,
                failure.text,
                extra=failure.fields(),
            )
            return stale
        if claims.from_cache:
            self._events.emit(CacheHit())
        return claims.overrides

    async def _get_claims(self, entry: ClaimsEntry, deadline: Deadline, metrics: InvocationMetrics) -> LoadedClaims:
        """Read the claims from the cache, else load them: once for all who ask for them at the same time."""
        joined = await entry.join(deadline)
        if isinstance(joined, Outcome):
            return joined.get()
        outcome = await capture(self._read_or_load(entry, joined, deadline, metrics))
        joined.finish(outcome)
        return outcome.get()

    async def _read_or_load(
        self, entry: ClaimsEntry, lead: Lead[LoadedClaims], deadline: Deadline, metrics: InvocationMetrics
    ) -> LoadedClaims:
        cached = await entry.read()
        if cached is not None:
            return LoadedClaims(cached, from_cache=True)
        metrics.record_lookup(miss=True)
        self._events.emit(CacheMiss())
        subject = entry.request.subject
        try:
            overrides = check_claims(await self._run_callback(subject, deadline), subject)
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            await entry.drop_stale()
            raise refusal(error, self._callback)  # noqa: B904 -- `error`, or its cause
        if overrides.empty:
            await entry.drop_stale()
        else:
            await entry.write(overrides, lead, deadline)
        return LoadedClaims(overrides, from_cache=False)

    async def _run_callback(self, subject: Subject, deadline: Deadline) -> object:
        try:
            return await self._runner.run(self._callback, subject, deadline)
        except SessionLostError:
            logger.info("The session was lost while load_claims was reading the claims. Reading them once more.")
        return await self._runner.run(self._callback, subject, deadline)
