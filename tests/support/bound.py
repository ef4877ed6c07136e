"""The server itself refuses the session too many: no look at it from outside is as exact."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.eventually import eventually

if TYPE_CHECKING:
    from asyncdb_guard import GuardedPool
    from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster


def allow(server: Cluster, url: str, sessions: int) -> None:
    """From now on the URL's user can't have more than so many sessions, not for a millisecond."""
    server.psql(f"ALTER ROLE {urlsplit(url).username} CONNECTION LIMIT {sessions}")


async def at_rest(pool: GuardedPool) -> None:
    """Return once no connection of the pool is lent or at work."""
    await eventually(lambda: pool.stats()["lent"] == 0, every=0.001)


def assert_accounts_balance(pool: GuardedPool) -> None:
    """In a quiet moment: what `stats()` promises of its sums."""
    stats = dict(pool.stats())
    ended = ("acquired", "acquire_timeouts", "rejections", "failures", "cancellations", "waiting")
    assert stats["requests"] == sum(int(str(stats[name])) for name in ended), stats
    assert stats["connects"] == sum(int(str(stats[name])) for name in ("closed", "replaced", "idle", "lent")), stats
