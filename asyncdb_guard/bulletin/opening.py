"""Opens the bulletin that the settings name. Imports its parts only then, so that a cold start without one is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncdb_guard.news import STRETCH_MAX
from asyncdb_guard.settings import DatabaseSettings

if TYPE_CHECKING:
    from asyncdb_guard.bulletin.board import Bulletin


def open_bulletin(settings: DatabaseSettings) -> Bulletin | None:
    """The bulletin of these settings; None if they name no store. Reads its files alone. Raises ConfigurationError."""
    if settings.fleet_url is None:
        return None
    from asyncdb_guard.bulletin.board import Bulletin, database_key

    url, database = settings.fleet_url, database_key(settings)
    # the next attempt of an environment whose period is the longest may come this late, and after silence twice that
    witness_life = 2 * STRETCH_MAX * settings.breaker_reset_timeout_max
    if url.get_secret_value().startswith("dynamodb:"):
        from asyncdb_guard.bulletin.dynamodb import DynamoDbStore, require_extra

        require_extra()
        return Bulletin(lambda: DynamoDbStore(url, database), witness_life)
    from asyncdb_guard.bulletin.redis import RedisStore, redis_endpoint
    from asyncdb_guard.connect.redis import require_redis

    require_redis("fleet_url")
    endpoint = redis_endpoint(settings)
    endpoint.check_files()
    return Bulletin(lambda: RedisStore(endpoint, database), witness_life)
