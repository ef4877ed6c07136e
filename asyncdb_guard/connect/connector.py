"""How a connection is opened: log in, adopt, wrap."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from asyncdb_guard import clock
from asyncdb_guard.clock import NEVER, Instant, after
from asyncdb_guard.connect.adopting_pool import AdoptingPool
from asyncdb_guard.connect.credentials import Credentials, FixedCredentials
from asyncdb_guard.connect.initialization import Init, initialize
from asyncdb_guard.connect.lent_statements import Bounds
from asyncdb_guard.connect.login import Login
from asyncdb_guard.connect.node import attempts, suits
from asyncdb_guard.connect.pooled_connection import PooledConnection
from asyncdb_guard.connect.pooler_connection import PoolerConnection
from asyncdb_guard.connect.server_detection import POOLER, node_state, probe, role_settings
from asyncdb_guard.connect.sockets import wait_server_closed
from asyncdb_guard.connect.startup import ServerTraits
from asyncdb_guard.connect.tls import TlsContexts
from asyncdb_guard.errors import ConfigurationError
from asyncdb_guard.failures import Verdict, judge_connect, login_refused
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.pooler_profile import DIRECT, TRANSACTION_POOLER, PoolerProfile
from asyncdb_guard.settings.problems import label
from asyncdb_guard.settings.target import ConnectTarget, is_socket
from asyncdb_guard.settings.url_parameters import SessionAttrs

_CHANCE = random.SystemRandom()
"""Not the module's generator: after a SnapStart restore its state is the same in all environments."""

_GOODBYE_TIMEOUT = 0.25
"""Seconds to wait, at most, for the server to close a session that was left behind."""


_SCHEMA_THROUGH_POOLER = (
    "The database is behind a transaction pooler, where schema in the database URL can only be public. Remove it, and"
    " qualify the names in your SQL or use ALTER ROLE … SET search_path."
)

_SETTINGS_THROUGH_POOLER = (
    f"The database is behind a transaction pooler, where {label('server_settings')} cannot be sent. Remove it, and use"
    " ALTER ROLE … SET."
)

_NODE_THROUGH_POOLER = (
    "The database is behind a transaction pooler, where target_session_attrs in the database URL can only be any,"
    " because the pooler chooses the node. Remove it, and connect to the pooler's endpoint for that kind of node."
)


class Connector:
    """Opens connections one by one; lives as long as its event loop.

    `lingering`: sockets of sessions on an earlier event loop. The first connect waits until the server has closed them.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        credentials: Credentials,
        traits: ServerTraits,
        lingering: Sequence[socket.socket] = (),
        init: Init | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._traits = traits
        self._lingering = list(lingering)
        self._init = init
        self._tls = TlsContexts()
        self._pool = AdoptingPool(settings.pool_max)

    @property
    def _profile(self) -> PoolerProfile:
        """The pooler in between, as the settings say or a connect has shown."""
        return TRANSACTION_POOLER if self._traits.pooler else self._settings.profile

    @property
    def _resets(self) -> bool:
        return (self._settings.session_reset or self._profile.session_reset) == "always"

    @property
    def renews_login(self) -> bool:
        """Whether a refused login is retried once with newly fetched credentials."""
        return not isinstance(self._credentials, FixedCredentials)

    @property
    def passwordless(self) -> bool:
        """Whether a login has no password but what asyncpg itself finds, in PGPASSWORD or a password file."""
        return not self.renews_login and self._settings.target.password is None

    def log_in(self) -> Login:
        """Start a login."""
        return Login(self._log_in())

    async def adopt(self, connection: asyncpg.Connection) -> PooledConnection:
        """Add a connection that has logged in to the pool."""
        bound = self._traits.statement_bound if self._profile.sends_startup_timeouts else None
        proxy = await self._pool.adopt(connection)
        bounds = Bounds(self._settings.command_timeout, bound, slow=self._settings.slow_statement)
        wanted = self._settings.target.target_session_attrs
        now = clock.now()
        return PooledConnection(proxy, now, self._draw_expiry(now), self._traits, wanted, bounds, resets=self._resets)

    @property
    def initializes(self) -> bool:
        """Whether new connections are handed to the caller's `init=`."""
        return self._init is not None

    async def initialize(self, connection: PooledConnection, timeout: float) -> None:
        """Hand a new connection to `init=`, for at most `timeout` seconds. Raises InitFailedError and TimeoutError."""
        assert self._init is not None
        pooler = self._profile is not DIRECT
        await initialize(connection, self._init, timeout, resets=connection.resets, pooler=pooler)

    async def _log_in(self) -> asyncpg.Connection:
        while self._lingering:
            await wait_server_closed(self._lingering.pop(), _GOODBYE_TIMEOUT)
        target = await self._credentials.complete(self._settings.target)
        try:
            return await self._open(target)
        except asyncpg.PostgresError as error:
            if not (self.renews_login and login_refused(error)):
                raise
        # outside the except block, so that a second refusal does not have the first one as its context
        return await self._open(await self._credentials.complete(self._settings.target, refused=target))

    async def _open(self, target: ConnectTarget) -> asyncpg.Connection:
        """Open a connection to a node of the kind that the settings ask for.

        asyncpg tries one address of a name, so all addresses are resolved here if the kind matters.
        """
        wanted = target.target_session_attrs
        if wanted == "any":
            return await self._open_at(target, target.host)
        failure: Exception | None = None
        for address, kind in attempts(wanted, await _addresses(target)):
            try:
                connection = await self._open_at(target, address)
                if await self._is_suitable(connection, kind):
                    return connection
                failure = asyncpg.TargetServerAttributeNotMatched(f"no server is {wanted}")
            except (OSError, asyncpg.PostgresError) as error:
                if judge_connect(error) is not Verdict.FAILURE:
                    raise
                failure = failure or error
        assert failure is not None
        raise failure

    async def _is_suitable(self, connection: asyncpg.Connection, kind: SessionAttrs) -> bool:
        """Whether a connection is on a node of this kind. If not, close it."""
        try:
            if kind == "any" or suits(kind, await node_state(connection, self._settings.connect_timeout)):
                return True
        except BaseException:
            connection.terminate()
            raise
        with contextlib.suppress(OSError):  # TimeoutError is one; the connection is aborted then
            await connection.close(timeout=_GOODBYE_TIMEOUT)
        return False

    async def _open_at(self, target: ConnectTarget, address: str | None) -> asyncpg.Connection:
        """Open a connection, and remember what the server refuses and whether it is a pooler."""
        while True:
            try:
                connection = await self._connect(target, address)
            except asyncpg.PostgresError as error:
                if not (self._profile.sends_startup_timeouts and self._traits.refuse(error)):
                    raise
            else:
                if self._profile is not DIRECT or await self._is_direct(connection, target):
                    return connection

    async def _connect(self, target: ConnectTarget, address: str | None) -> asyncpg.Connection:
        profile = self._profile
        parameters = _plain_settings(target)
        if profile.sends_startup_timeouts:
            parameters |= self._traits.own_parameters()
            parameters |= self._traits.parameters()
        return await asyncpg.connect(
            host=address,
            port=target.port,
            user=target.user,
            password=target.password.get_secret_value() if target.password is not None else "",
            database=target.database,
            ssl=self._tls.context(target),
            command_timeout=self._settings.command_timeout,
            statement_cache_size=profile.statement_cache_size,
            connection_class=PoolerConnection if profile.keeps_backend else asyncpg.Connection,
            server_settings=parameters,
            # for what is left out, and for no password, asyncpg would read libpq's environment variables and files
            target_session_attrs=SessionAttribute.any,
            direct_tls=False,
            gsslib="gssapi",
            krbsrvname="postgres",
        )

    async def _is_direct(self, connection: asyncpg.Connection, target: ConnectTarget) -> bool:
        """Whether a connection can be used as a direct one. If not, close it; the next attempt sends something else."""
        traits = self._traits
        sent = traits.parameters()
        timeout = self._settings.connect_timeout
        try:
            found = await probe(connection, sent, timeout, dba=not traits.dba_asked)
            if not found:
                traits.dba_asked = True
                return True
            if found == POOLER:
                if target.schema not in {None, "public"}:
                    raise ConfigurationError(_SCHEMA_THROUGH_POOLER)
                if target.server_settings:
                    raise ConfigurationError(_SETTINGS_THROUGH_POOLER)
                if target.target_session_attrs != "any":
                    raise ConfigurationError(_NODE_THROUGH_POOLER)
                traits.found_pooler()
            elif not traits.respect(await role_settings(connection, sent, timeout)):
                return True
        except BaseException:
            connection.terminate()
            raise
        await connection.close(timeout=_GOODBYE_TIMEOUT)
        return False

    def _draw_expiry(self, now: Instant) -> Instant:
        if not self._settings.max_lifetime:
            return NEVER
        # ±10 %, so that sessions opened together are not replaced together
        return after(now, self._settings.max_lifetime * _CHANCE.uniform(0.9, 1.1))

    def terminate(self) -> None:
        """Close asyncpg's pool at once."""
        self._pool.terminate()


async def _addresses(target: ConnectTarget) -> list[str]:
    """Every address that the host's name has now, in the resolver's order; the directory of a Unix socket as it is."""
    if target.host is not None and is_socket(target.host):
        return [target.host]
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _plain_settings(target: ConnectTarget) -> dict[str, str]:
    """Startup parameters that every server accepts. So does a pooler, as no search_path is sent to one."""
    settings: dict[str, str] = {}
    if target.application_name is not None:
        settings["application_name"] = target.application_name
    if target.schema is not None:
        settings["search_path"] = ", ".join(
            '"' + name.strip().replace('"', '""') + '"' for name in target.schema.split(",")
        )
    return settings
