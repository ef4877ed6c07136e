"""The caller's own hook for each new connection (`init=`), and what the session reset must keep of its work.

RESET ALL, RESET ROLE and UNLISTEN undo what the hook did on the server, so the session remembers one message that does
it again: it is sent along with the reset, in the same round trip.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

from asyncdb_guard.connect.lent_connection import LentConnection
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.errors import ConfigurationError

Init: TypeAlias = Callable[[LentConnection], Awaitable[object]]
"""`async def init(conn)`: prepares a new connection, before anybody borrows it."""

_SETTINGS = """
SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session'
UNION ALL
SELECT name, pg_catalog.current_setting(name, true) FROM pg_catalog.unnest($1::text[]) AS name
WHERE pg_catalog.current_setting(name, true) IS NOT NULL
    AND name NOT IN (SELECT pg_catalog.lower(known.name) FROM pg_catalog.pg_settings AS known)
UNION ALL
SELECT 'role', pg_catalog.current_setting('role') WHERE pg_catalog.current_setting('role') <> 'none'
"""
"""What differs from a new session. pg_settings lists neither the role nor custom settings (`app.tenant`)."""

_CUSTOM = r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
"""What may be the name of a custom setting, in the text or the arguments of a statement."""

_OUTLIVES_STATEMENT = r"(?i)(?:\A|;)\s*(?:SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|LISTEN\b)"

_NOT_THROUGH_POOLER = (
    "init= runs SET or LISTEN, which a transaction pooler applies to whichever session is next. Use ALTER ROLE … SET"
    " for settings, and a direct connection for LISTEN. Codecs work behind a pooler."
)
_NOT_ASYNC = "init= takes one `async def init(conn)`, or another function whose result can be awaited."
_NOT_CLEAN = "init= left a transaction open or a statement running. End both before it returns."


class InitFailedError(Exception):
    """Carries what `init=` raised, and whether its session was lost, to whoever waits for the connection."""

    def __init__(self, error: BaseException, *, lost: bool) -> None:
        super().__init__()
        self.error = error
        self.lost = lost


class Setting(NamedTuple):
    """One setting of a session, with its value as the server shows it."""

    name: str
    value: str


def checked(init: Init | None) -> Init | None:
    """Return `init`. Raises TypeError for what cannot be one."""
    given: object = init
    if given is not None and (not callable(given) or inspect.isgeneratorfunction(given)):
        raise TypeError(_NOT_ASYNC)
    return init


async def initialize(connection: PooledConnection, init: Init, timeout: float, *, resets: bool, pooler: bool) -> None:
    """Run `init` on a new connection, for at most `timeout` seconds; then TimeoutError.

    Raises InitFailedError for whatever it raises. `resets`: whether the reset query is sent at each release; `pooler`:
    whether a transaction pooler stands in between.
    """
    # a task, as `init` is somebody else's code, and may go on after a cancellation
    task = asyncio.create_task(_run(connection, init, timeout, resets=resets, pooler=pooler))
    task.add_done_callback(_look_at)
    try:
        done, _ = await asyncio.wait({task}, timeout=max(timeout, 0.0))
    finally:
        task.cancel()
    if not done:
        raise TimeoutError
    if task.cancelled():
        raise InitFailedError(asyncio.CancelledError(), lost=connection.is_closed())
    if (error := task.exception()) is not None:
        raise InitFailedError(error, lost=connection.is_closed())


def _look_at(task: asyncio.Task[None]) -> None:
    """Else asyncio would log that nobody did."""
    if not task.cancelled():
        task.exception()


async def _run(connection: PooledConnection, init: Init, timeout: float, *, resets: bool, pooler: bool) -> None:
    lent = connection.lend()
    log: list[Any] = []
    with lent.query_logger(log.append):
        work: object = init(lent)
        if not inspect.isawaitable(work):
            raise TypeError(_NOT_ASYNC)
        await work
        await asyncio.sleep(0)  # asyncpg calls a query logger in the loop's next round
    connection.keep(lent)
    if connection.needs_cleanup and not await connection.settle(timeout):
        raise ConfigurationError(_NOT_CLEAN)
    if pooler:
        if any(re.search(_OUTLIVES_STATEMENT, record.query) for record in log):
            raise ConfigurationError(_NOT_THROUGH_POOLER)
    elif resets and log:
        rows = await connection.fetch(_SETTINGS, sorted(_custom_names(log)), timeout=timeout)
        connection.keep_settings([Setting(*row) for row in rows])


def _custom_names(log: Iterable[Any]) -> set[str]:
    texts = [text for record in log for text in (record.query, *(record.args or ())) if isinstance(text, str)]
    return {name.lower() for text in texts for name in re.findall(_CUSTOM, text)}
