"""One connection of the pool, for as long as its server session lives.

Only this module, `lent_connection`, `lent_statements`, `pooler_connection` and `sockets` use private names of asyncpg
and asyncio. It is one module, as all that a session needs between two borrowers needs those names. asyncpg's pool owns
every physical connection, but each is checked out of it once and lent from here: asyncpg's own acquire and release cost
more than a round trip on loopback, and its release is a task. `tests/test_connector.py` has a test for each private
name, which fails in plain words when asyncpg changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import asyncpg
import asyncpg.connection
from asyncpg.pool import PoolConnectionProxy

from asyncdb_guard.clock import LONG_AGO, Instant
from asyncdb_guard.connect.lent_connection import Leftovers, LentConnection
from asyncdb_guard.connect.lent_statements import Bounds
from asyncdb_guard.connect.node import kept_suitable, needs_writer, reported_state, suits
from asyncdb_guard.connect.pooler_connection import PoolerConnection
from asyncdb_guard.connect.reset import (
    AUTHORIZATION,
    DEALLOCATE,
    NAMES,
    NO_NAMES,
    ROLLBACK,
    Part,
    identifier,
    join,
    lacks,
    literal,
)
from asyncdb_guard.connect.sockets import drop, hang_up, socket_probe
from asyncdb_guard.connect.startup import CLIENT_CHECK_INTERVAL, ServerTraits
from asyncdb_guard.events import logger
from asyncdb_guard.settings.url_parameters import SessionAttrs

_CUT_OFF_TIME = CLIENT_CHECK_INTERVAL + 0.1
"""Seconds, at most, until a server that runs a statement has noticed that its client hung up, and ended the session."""

_driver: Any = asyncpg.connection


def _timed_connection() -> type[LentConnection]:
    from asyncdb_guard.connect.slow_statements import TimedConnection  # only where it is needed, for a quick cold start

    return TimedConnection


class PooledConnection:
    """One server session, checked out of asyncpg's pool; lives as long as that session."""

    __slots__ = (
        "_bounds",
        "_config",
        "_connection",
        "_holder",
        "_kept",
        "_known_statements",
        "_leaves_names",
        "_lent_kind",
        "_needs_writer",
        "_prepared",
        "_protocol",
        "_ran_scripts",
        "_restore",
        "_restore_text",
        "_server_settings",
        "_session_user",
        "_traits",
        "_transport",
        "_via_pooler",
        "_without_timeout",
        "closing",
        "expires_at",
        "has_leftovers",
        "holder",
        "idle_since",
        "is_closed",
        "lease",
        "lost_mid_statement",
        "opened_at",
        "readable",
        "resets",
        "suspected",
        "unresettable",
        "wanted",
    )

    def __init__(
        self,
        proxy: PoolConnectionProxy,
        now: Instant,
        expires_at: Instant,
        traits: ServerTraits,
        wanted: SessionAttrs,
        bounds: Bounds,
        *,
        resets: bool,
    ) -> None:
        bare: Any = proxy  # asyncpg's private names have no types
        self._holder = bare._holder
        # asyncpg/pool.py: _detach() returns the bare connection and disables the proxy
        self._connection: Any = bare._detach()
        self._protocol: Any = self._connection._protocol
        self._transport: Any = self._connection._transport
        # asyncpg/connection.py: ConnectionMeta makes isinstance() true for every connection
        self._via_pooler = type(self._connection) is PoolerConnection
        self._traits = traits
        self.wanted: SessionAttrs | None = wanted if kept_suitable(wanted) else None
        self._needs_writer = needs_writer(wanted)
        self._server_settings: Any = self._connection.get_settings()
        self._session_user = getattr(self._server_settings, "session_authorization", None)
        self._known_statements: int = _driver._uid
        self._ran_scripts = False
        self._prepared = False
        """Whether the session has a name of ours, for the reset."""
        self._leaves_names = False
        """Whether a borrower of this session ever left a name of SQL's own PREPARE: then each reset checks for them."""
        self.resets = resets
        """Whether the reset query is sent at each release."""
        self.opened_at = now
        self.idle_since = now
        self.expires_at = expires_at
        """When it is to be replaced, at its next borrow."""
        self._config = self._connection._config
        self._without_timeout = self._config._replace(command_timeout=None)
        self._bounds = bounds
        self._lent_kind: type[LentConnection] = _timed_connection() if bounds.slow else LentConnection
        self._kept: tuple[tuple[tuple[str, Any], ...], dict[str, set[Any]]] | None = None
        """The callbacks and the listeners of `init=`."""
        self._restore: tuple[Part, ...] = ()
        """What follows the reset in one message: it does again what `init=` did on the server."""
        self._restore_text = ""
        self.lease = 0
        """The number of the lease that owns it, or 0."""
        self.holder: object = None
        """The task that borrowed it for an `async with`; None if anybody may return it."""
        self.closing = False
        """Whether it is to be closed: it must not be lent again."""
        self.lost_mid_statement = False
        """Whether it was lost without a message from the server, which may still be running a statement."""
        self.has_leftovers = False
        """Whether the borrower left a listener or a running statement behind."""
        self.unresettable = False
        """Whether the borrower changed what no reset restores."""
        self.suspected: str | None = None
        """Why it may be unfit to be lent again, judging by its last block; None if there is no reason."""
        self.is_closed: Callable[[], bool] = self._connection.is_closed
        """Whether the client knows that the session has ended. After a freeze it may not know yet."""
        raw = self._transport.get_extra_info("socket")
        self.readable: Callable[[], object] = socket_probe(raw.fileno() if raw is not None else None)

    def lend(self) -> LentConnection:
        """Return a connection that works until `take_back`, and raises InterfaceError afterwards."""
        return self._lent_kind(self._holder, self._connection, self._bounds)

    def expire(self) -> None:
        """Have it replaced at its next borrow, whatever its age."""
        self.expires_at = LONG_AGO

    def let_go(self, lent: LentConnection) -> None:
        """Do not keep `lent` alive: if its borrower forgets it, that shows at once."""
        # asyncpg/connection.py: what callbacks get as their connection
        self._connection._proxy = weakref.proxy(lent)

    def keep(self, lent: LentConnection) -> None:
        """End the work of `init=`: what it left on our side of the wire is there for every borrower."""
        left = self._end(lent)
        if left.callbacks or left.listeners:
            self._kept = left.callbacks, self._connection._listeners
            self._keep_callbacks()
            channels = dict.fromkeys(channel for channel, _ in left.listeners)
            self._restore_with(f"LISTEN {identifier(channel)}" for channel in channels)

    def keep_settings(self, settings: Sequence[tuple[str, str]]) -> None:
        """Set these again after each reset, in this order. They are names, with values as the server shows them."""
        user = self._reported_user()
        if user != self._session_user:
            self._restore_with([f"SET SESSION AUTHORIZATION {identifier(str(user))}"])
        for name, value in settings:
            # a condition, as each column and row of an answer has a cost
            self._restore_with(
                [f"SELECT WHERE pg_catalog.set_config({literal(name)}, {literal(value)}, false) IS NULL"]
            )
            if name == "statement_timeout":
                seconds = int(value) / 1000 or None
                self._bounds = self._bounds._replace(server=seconds, reset=f"SET {name} = {int(value)}")

    def _restore_with(self, statements: Iterable[str]) -> None:
        self._restore += tuple(Part(sql, "what init= set") for sql in statements)
        self._restore_text = f";{join(self._restore)}" if self._restore else ""

    async def fetch(self, query: str, *arguments: object, timeout: float) -> list[asyncpg.Record]:
        """Run one statement of our own within `timeout` seconds. Raises whatever the driver raises."""
        rows: list[asyncpg.Record] = await self._connection.fetch(query, *arguments, timeout=timeout)
        return rows

    def take_back(self, lent: LentConnection) -> None:
        """End a borrow: the borrower's connection, statements and cursors stop working.

        Warns with asyncpg.InterfaceWarning, as asyncpg does, if the borrower left a listener behind.
        """
        left = self._end(lent)
        self.unresettable = left.changed_codecs
        if left.listeners or left.callbacks or self._kept is not None:
            self._remove_callbacks(left, warn=not lent.listens)

    def _end(self, lent: LentConnection) -> Leftovers:
        bare: Any = lent
        if bare._con is not None:  # asyncpg/pool.py: _detach() takes more steps
            bare._con = self._connection._proxy = None
        lent.released = True
        left = lent.leftovers
        # asyncpg/connection.py: statements and cursors compare this number with the one they were created under
        self._connection._pool_release_ctr += 1
        self.has_leftovers = left.running > 0 or left.raised_server_bound
        self._ran_scripts = left.ran_scripts
        return left

    def _remove_callbacks(self, left: Leftovers, *, warn: bool) -> None:
        for kind, callback in left.callbacks:
            getattr(self._connection, f"remove_{kind}")(callback)
        self.has_leftovers = self.has_leftovers or bool(left.listeners)
        if self._kept is not None:
            self.has_leftovers = self.has_leftovers or self._connection._listeners != self._kept[1]
            self._keep_callbacks()
        count = len(left.listeners) + sum(kind == "log_listener" for kind, _ in left.callbacks)
        if count and warn:
            warnings.warn(
                f"A connection was returned to the pool with {count} active listener(s). Remove each listener before"
                " the block ends.",
                asyncpg.InterfaceWarning,
                stacklevel=5,
            )

    def _keep_callbacks(self) -> None:
        """Have those of `init=`, whatever a borrower added or removed."""
        callbacks, listeners = self._kept or ((), {})
        for kind, callback in callbacks:
            getattr(self._connection, f"add_{kind}")(callback)
        self._connection._listeners = {channel: set(ours) for channel, ours in listeners.items()}

    @property
    def misplaced(self) -> bool:
        """Whether the server has reported that it is no longer of the kind that the settings ask for. No round trip."""
        if self.wanted is None:
            return False
        state = reported_state(self._server_settings)
        return state is not None and not suits(self.wanted, state)

    @property
    def interrupted(self) -> bool:
        """Whether a statement was interrupted and the server has not yet confirmed its end."""
        return bool(self._protocol._is_cancelling())

    @property
    def taken_for_busy(self) -> bool:
        """Whether the driver believes that a statement is running.

        An exception from a signal handler can leave it so, and then it would refuse every later statement.
        """
        return bool(self._connection._stmt_exclusive_section._acquired)

    @property
    def needs_cleanup(self) -> bool:
        """Whether a statement is running or being cancelled, or the borrower left something behind on the server."""
        protocol, connection = self._protocol, self._connection
        return bool(
            protocol._is_cancelling()
            or protocol.is_in_transaction()
            or self.taken_for_busy
            or (self._via_pooler and connection.keeps_backend)
            or self.has_leftovers
            or self.unresettable
            # asyncpg/transaction.py: set before BEGIN is sent, and still set if BEGIN fails
            or connection._top_xact is not None
        )

    async def settle(self, timeout: float) -> bool:
        """Wait, for at most `timeout` seconds, until a cancelled statement has ended; return whether it is clean."""
        # asyncpg waits for the outstanding cancellation before it sends this, within the same timeout
        await self.ping(timeout)
        connection = self._connection
        return not (connection.is_in_transaction() or connection._top_xact is not None or self.has_leftovers)

    async def ping(self, timeout: float) -> None:
        """Make one round trip of at most `timeout` seconds. Raises whatever the driver raises."""
        await self._connection.execute("SELECT 1", timeout=timeout)

    def send_reset(self) -> asyncio.Future[str] | None:
        """Send the usual reset, and return its answer: the server's command tag, or an error. It has no timeout.

        None if the session needs something else, or cannot send it: then call `reset`.
        """
        if not self._prepared or self.suspected is not None or self._needs_more(self.needs_cleanup):
            return None
        connection = self._connection
        query = self._protocol.query(self._traits.reset_plan.usual + self._restore_text, None)
        connection._config = self._without_timeout
        try:
            answer: asyncio.Future[str] = query.send(None)
        except Exception:  # a stray task uses the connection, say; `reset` meets that, too, and judges it
            return None
        finally:
            connection._config = self._config
        query.close()  # all that is left of it would wait for the answer
        answer._asyncio_future_blocking = False  # asyncio/tasks.py: as a task does with what it gets to wait for
        return answer

    async def reset(
        self, timeout: float, *, needs_cleanup: bool = True, answer: asyncio.Future[str] | None = None
    ) -> None:
        """Roll back, and clear all that a borrower can leave in a session: one round trip of at most `timeout` seconds.

        `answer`: of `send_reset`, if that has sent something. Raises whatever the driver raises, except for parts that
        the server does not know or does not allow the role.
        """
        try:
            if answer is not None:
                if not answer.done():
                    await asyncio.wait({answer}, timeout=timeout)  # to cancel it would send a cancel request
                if not answer.done():
                    raise TimeoutError
                answer.result()
                return
            if not self._needs_more(needs_cleanup):
                plan = self._traits.reset_plan
                text = plan.usual if self._prepared else plan.first
                await self._protocol.query(text + self._restore_text, timeout)
                self._prepared = True
                return
        except asyncpg.InvalidSQLStatementNameError:  # a borrower ran DEALLOCATE ALL, say
            self._prepared = False
            # those of asyncpg's statement cache are gone, too, and each would fail from now on
            self._connection._drop_local_statement_cache()
        except asyncpg.PostgresError as error:
            if not lacks(error):
                raise
        await self._reset_unusually(timeout, needs_cleanup)

    def _needs_more(self, needs_cleanup: bool) -> bool:
        """Whether the reset needs parts that are needed only sometimes, or fewer than all."""
        # asyncpg/connection.py: _uid goes up with each statement that any connection prepares
        return (
            needs_cleanup
            or self._ran_scripts
            or self._leaves_names
            or self._known_statements != _driver._uid
            or self._reported_user() != self._session_user
            or self._via_pooler
            or self._traits.reset_plan.one_by_one
        )

    async def _reset_unusually(self, timeout: float, needs_cleanup: bool) -> None:
        """The same with the parts that are needed only sometimes, or after the server has refused a part."""
        plan = self._traits.reset_plan
        before: list[Part] = []
        if needs_cleanup:
            self._forget_borrower()
            before.append(ROLLBACK)
        if self._reported_user() != self._session_user or self._via_pooler:
            before.append(AUTHORIZATION)
        tag = await self._send_parts(plan.parts(before, [*self._restore, NAMES]), timeout)
        if plan.accepts(NAMES) and tag != NO_NAMES:
            self._leaves_names = True
            await self._connection.execute(DEALLOCATE, timeout=timeout)
        self._known_statements = _driver._uid

    async def _send_parts(self, parts: list[Part], timeout: float) -> str:
        """Send the parts and return the last command tag. If the server refuses them together, send them one by one."""
        plan = self._traits.reset_plan
        if not plan.one_by_one:
            try:
                tag: str = await self._connection.execute(join(parts), timeout=timeout)
            except asyncpg.PostgresError as error:
                if not lacks(error):
                    raise
            else:
                return tag
        tag, refused = "", dict[Part, asyncpg.PostgresError]()
        async with asyncio.timeout(timeout):
            for part in parts:
                try:
                    tag = await self._connection.execute(part.sql)
                except asyncpg.PostgresError as error:
                    if part in self._restore or not lacks(error, part):
                        raise
                    refused[part] = error
        plan.one_by_one = not refused
        if refused:
            plan.refuse(refused)
        return tag

    def _reported_user(self) -> object:
        """The session user, which PostgreSQL reports whenever it changes."""
        return getattr(self._server_settings, "session_authorization", self)

    def _forget_borrower(self) -> None:
        connection = self._connection
        if self._protocol.is_in_transaction() and not self.interrupted:
            logger.warning(
                "A block ended with an open transaction, which is rolled back. Use `async with conn.transaction()`, or"
                " COMMIT before the block ends."
            )
        connection._top_xact = None
        self._keep_callbacks()

    async def is_unfit(self, now: Instant, timeout: float) -> bool:
        """Find out, after a reset, whether the suspicion is right: one round trip of at most `timeout` seconds.

        Only `read_only` can be suspected. If the block itself had asked for that, the reset has ended it.
        """
        sessions = self._traits.read_only_sessions
        if not self._needs_writer or not sessions.worth_ending(self.opened_at, now):
            return False
        # libpq asks this for target_session_attrs: on for a standby, and where the server or the role is read-only
        if await self._connection.fetchval("SHOW transaction_read_only", timeout=timeout) != "on":
            return False
        sessions.found(now)
        return True

    async def close(self, timeout: float) -> None:
        """Close politely and wait for the server to close its side; else hang up in time for it to notice that.

        That takes about `timeout` seconds at most. A running statement is cancelled first; but a cancel request that
        overtakes its statement does nothing.
        """
        connection = self._connection
        # as they were before this close, which itself waits for the server
        lost_mid_statement, aborted = self.lost_mid_statement, connection._aborted
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await connection.close(timeout=max(timeout - _CUT_OFF_TIME, timeout / 2))
        # asyncpg/connection.py: it aborts what it could not close in order; where the cancel request failed, silently
        cut_off = connection._aborted and not aborted
        self.terminate()
        if lost_mid_statement or cut_off:
            await asyncio.sleep(_CUT_OFF_TIME)

    def terminate(self) -> None:
        """Hang up at once."""
        self._connection.terminate()

    def abandon(self) -> socket.socket | None:
        """Hang up without the event loop; return a socket for `sockets.wait_server_closed`, or None."""
        self._leave_holder()
        return hang_up(self._transport)

    def disown(self) -> None:
        """In a fork: drop the parent's session without sending a byte or touching the epoll that both share."""
        self._leave_holder()
        drop(self._transport)

    def _leave_holder(self) -> None:
        # asyncpg/connection.py: without a holder, its end notifies no pool; once aborted, it has no finaliser
        self._connection._pool_holder = None
        self._connection._aborted = True
