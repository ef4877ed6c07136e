"""A bulletin in Redis or Valkey. Needs the extra `redis`."""

from __future__ import annotations

from typing import Any

from asyncdb_guard.clock import Instant
from asyncdb_guard.connect.redis import RedisClient, RedisEndpoint
from asyncdb_guard.news import LAST_LIFE, RECOVERY_LIFE, WITNESSES_MAX, News, believed
from asyncdb_guard.settings import DatabaseSettings

_PREFIX = "asyncdb_guard:fleet:1"
"""The number is the version of the format."""
_RIGHTS = (
    "EVAL, DEL, GET, PEXPIRE, PTTL, SET, TIME, ZADD, ZCOUNT, ZREMRANGEBYRANK and ZREMRANGEBYSCORE on"
    " `asyncdb_guard:fleet:*`"
)

_NO_KEY = -2
"""What PTTL says of a key that does not exist."""

# KEYS: last, recovery, open. Members of `open` are witnesses; a score is when one stops to count, in milliseconds.
_LOOK = """
local now = redis.call('TIME')
local witnesses = redis.call('ZCOUNT', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000), '+inf')
return {redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2]), redis.call('GET', KEYS[2]), witnesses}
"""
_TELL_OPEN = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
"""
_TELL_RECOVERED = """
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3]) end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
redis.call('DEL', KEYS[3])
"""
"""Each is one round trip, and atomic."""


class RedisStore:
    """A `FleetStore`: three keys of one database, whose ages are what is left of their lives."""

    def __init__(self, endpoint: RedisEndpoint, database: str) -> None:
        """Does not connect yet. Raises ConfigurationError if redis-py does not accept the URL."""
        self._client = RedisClient(endpoint, decode_responses=True)
        # the braces put all keys into one hash slot of a cluster
        self._keys = [f"{_PREFIX}:{{{database}}}:{word}" for word in ("last", "recovery", "open")]

    def look(self, at: Instant) -> News:
        """Return what it holds. Raises ValueError for what no environment can have told."""
        last, since, recovery, witnesses = self._run(_LOOK)
        return believed(at, _age(last, LAST_LIFE), recovery, _age(since, RECOVERY_LIFE), int(witnesses))

    def tell_open(self, witness: str, life: float) -> None:
        """Keep for `life` seconds that `witness` has opened its circuit."""
        self._run(_TELL_OPEN, witness, _milliseconds(life), WITNESSES_MAX)

    def tell_recovered(self, recovery: str) -> None:
        """A trial succeeded. If none did lately, `recovery` begins; nobody's circuit counts as open any more."""
        self._run(_TELL_RECOVERED, recovery, _milliseconds(LAST_LIFE), _milliseconds(RECOVERY_LIFE))

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _run(self, script: str, *arguments: str | int) -> Any:
        words = (*self._keys, *map(str, arguments))
        return self._client.run(lambda client: client.eval(script, len(self._keys), *words))


def redis_endpoint(settings: DatabaseSettings) -> RedisEndpoint:
    """Where these settings keep the bulletin."""
    assert settings.fleet_url is not None
    return RedisEndpoint(
        settings.fleet_url, "fleet", "fleet store", _RIGHTS,
        settings.fleet_ssl_root_cert, settings.fleet_ssl_cert, settings.fleet_ssl_key,
    )  # fmt: skip


def _age(left: int, life: float) -> float | None:
    """Seconds since a key was written; outside 0 to `life` where it was not written by us."""
    return None if left == _NO_KEY else life - left / 1000


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
