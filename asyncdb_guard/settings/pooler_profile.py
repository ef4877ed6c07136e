"""What stands between a connection and PostgreSQL, and what that permits. A new kind of pooler is one new row here."""

from typing import Literal, NamedTuple


class PoolerProfile(NamedTuple):
    """How connections behave under one kind of pooler, or without one. Lives as long as the process."""

    name: str
    statement_cache_size: int
    """Prepared statements per connection. 0 where the next statement may reach a backend that does not know them."""
    sends_startup_timeouts: bool
    """Whether idle_session_timeout, idle_in_transaction_session_timeout and client_connection_check_interval are sent
    at startup. Transaction poolers refuse them (PgBouncer with SQLSTATE 08P01, RDS Proxy with 0A000)."""
    sets_search_path: bool
    """Whether the URL's `schema` is sent as search_path at startup. Transaction poolers refuse it."""
    tells_node: bool
    """Whether what the server reports about itself is about the node that runs the statements. A pooler reports what it
    once heard, and chooses the node itself."""
    session_reset: Literal["always", "never"]
    """The default of SESSION_RESET."""
    keeps_backend: bool
    """Whether the pooler may keep a backend for a client that sent Parse and has not sent Sync yet."""


DIRECT = PoolerProfile(
    name="direct",
    statement_cache_size=100,
    sends_startup_timeouts=True,
    sets_search_path=True,
    tells_node=True,
    session_reset="always",
    keeps_backend=False,
)

TRANSACTION_POOLER = PoolerProfile(
    name="transaction pooler",
    statement_cache_size=0,
    sends_startup_timeouts=False,
    sets_search_path=False,
    tells_node=False,
    session_reset="never",
    keeps_backend=True,
)
"""RDS Proxy, and PgBouncer with `pool_mode = transaction`."""


def choose_profile(*, proxy_host: str | None, proxy_profile: bool | None) -> PoolerProfile:
    """The profile for these two settings: PROXY_HOST turns the proxy profile on, and PROXY_PROFILE overrides it."""
    through_pooler = proxy_host is not None if proxy_profile is None else proxy_profile
    return TRANSACTION_POOLER if through_pooler else DIRECT
