"""One loan: through the breaker, to a session, and back, with the block's end judged."""

from __future__ import annotations

from types import TracebackType

from asyncdb_guard import clock
from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.session import LentConnection, Session
from asyncdb_guard.pool.guard import Guard
from asyncdb_guard.pool.lending import Lending
from asyncdb_guard.verdict import Verdict, judge, server_spoke


class Acquisition:
    """What `GuardedPool.acquire()` returns; good for one `async with` at a time."""

    __slots__ = ("_guard", "_in_use", "_lending", "_lent", "_permit", "_session", "_since", "_timeout")

    _lending: Lending
    _lent: LentConnection
    _permit: int
    _session: Session
    _since: Instant

    def __init__(self, guard: Guard, timeout: float | None) -> None:
        self._guard = guard
        self._timeout = timeout
        self._in_use = False

    async def __aenter__(self) -> LentConnection:
        if self._in_use:
            raise RuntimeError("This acquisition is in use: call acquire() anew for each `async with`.")
        self._in_use = True
        guard = self._guard
        counters = guard.counters
        counters.requests += 1
        try:
            self._lending = lending = guard.here()
            now = clock.now()
            permit = lending.breaker.admit(now)
            session = lending.slots.take(now)
            if session is None:
                timeout = guard.settings.connect_timeout if self._timeout is None else self._timeout
                session, permit = await lending.wait(permit, timeout, now)
                since, now = now, clock.now()
                counters.wait_ms += elapsed(since, now) * 1000
        except BaseException as error:
            self._in_use = False
            counters.count_failed_request(error)
            raise
        counters.acquired += 1
        self._session = session
        self._permit = permit
        self._since = now
        self._lent = lent = session.lend()
        return lent

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, lending, lent = self._session, self._lending, self._lent
        self._in_use = False
        try:
            session.take_back(lent)  # warns of listeners left behind, and a warning may be an error
        finally:
            now = clock.now()
            lost = session.is_closed()
            if error is None and not lost:  # what judge() says of these, without asking it each time
                lending.breaker.succeeded(self._permit)
            else:
                session.torn = lost and not server_spoke(error)
                lending.report(self._permit, self._judge(error, lost and not lent.hung_up, now), now)
            if lost:
                lending.slots.lose(session)
            elif error is not None:
                await lending.tidy_after_failure(session)
            elif lending.slots.must_tidy(session):
                await lending.slots.tidy(session)
            else:
                lending.slots.give_back(session, now)

    def _judge(self, error: BaseException | None, lost: bool, now: Instant) -> Verdict:
        if self._lending.closed or self._session.ending:
            return Verdict.NEUTRAL  # our own doing
        paused = elapsed(self._since, now) >= self._guard.settings.idle_timeout
        return judge(error, lost=lost, paused=paused)
