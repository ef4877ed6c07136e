"""What a session may need between two borrowers. `make_fit` and `check` answer with the reason to end it, or None."""

from __future__ import annotations

from asyncdb_guard.clock import Instant, elapsed
from asyncdb_guard.connect.session import Session
from asyncdb_guard.liveness import Health, assess
from asyncdb_guard.verdict import server_spoke


def health_of(session: Session, idle_timeout: float, now: Instant) -> Health:
    """What a borrower may do with an idle session; costs a poll of its socket and no round trip."""
    return assess(
        session.is_closed(),
        session.readable(),
        elapsed(session.idle_since, now),
        idle_timeout,
        elapsed(session.opened_at, now),
        session.lifetime,
    )


async def make_fit(session: Session, *, reset: bool, timeout: float) -> str | None:
    """Make a session that its borrower left behind fit for the next one, within `timeout` seconds."""
    try:
        if reset:
            await session.reset(timeout)
        elif not await session.quiesce(timeout):
            return "unclean"  # a transaction or a listener: without asyncpg's reset query a new session is the safe way
    except Exception as error:
        session.torn = not server_spoke(error)
        return _give_up(session, error, otherwise="unclean")
    return None


async def check(session: Session, health: Health, timeout: float) -> str | None:
    """Find out whether an idle session still works: by one ping of at most `timeout` seconds, where it is suspect."""
    if health is Health.GOOD:
        return None
    if health is not Health.SUSPECT:
        return str(health.value)
    try:
        await session.ping(timeout)
    except Exception as error:
        return _give_up(session, error, otherwise="lost")
    return None


def _give_up(session: Session, error: Exception, *, otherwise: str) -> str:
    if isinstance(error, TimeoutError):
        session.terminate()  # who did not answer this will not answer a goodbye
        return "unresponsive"
    return "lost" if session.is_closed() else otherwise
