"""Runs one plan: borrowers and faults for some seconds, then everything that must hold when the faults end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trustme

from asyncdb_guard import AcquireTimeoutError, ConnectTimeoutError, DatabaseSettings, GuardedPool, GuardError
from asyncdb_guard.testing.postgres.server import TemporaryPostgres as Cluster
from asyncdb_guard.testing.tcp_proxy.proxy import TcpProxy
from tests.soak.borrowers import Borrowers
from tests.soak.watch import Watch
from tests.support.bound import assert_accounts_balance
from tests.support.pgbouncer import PgBouncer

if TYPE_CHECKING:
    from tests.soak.noise import Noise
    from tests.soak.plan import Fault, Plan

LIMITS = {
    "connect_timeout_ms": 600,
    "command_timeout_ms": 400,
    "idle_timeout_ms": 400,
    "max_lifetime_ms": 1500,
    "breaker_reset_timeout_ms": 50,
    "breaker_reset_timeout_max_ms": 200,
}

LATE = 0.5
"""Seconds by which a wait may outlive its timeout on a busy machine, besides what the loop itself lagged."""

CROWDED = 1.0
"""Seconds for which the server may show a session too many: it notices a hang-up in a statement after a quarter."""

RECOVERY = 3.0
"""Seconds after the last fault until the pool works, and twice that after a path went dead: then a login that was given
up keeps its place for five times CONNECT_TIMEOUT."""

USER = "soak"


class Schedule:
    """One run of one plan; collects what does not hold."""

    def __init__(self, plan: Plan, server: Cluster, noise: Noise) -> None:
        self._plan = plan
        self._server = server
        self._noise = noise
        self._lag = 0.0
        self.faults: list[str] = []
        """What does not hold, a sentence each."""
        self.served = self.asked = 0
        self.did = 0
        """How many faults it brought about."""

    def run(self, seconds: float) -> None:
        plan, server = self._plan, self._server
        server.psql(f"DROP ROLE IF EXISTS {USER}; CREATE ROLE {USER} LOGIN")
        with ExitStack() as stack:
            bouncer = stack.enter_context(PgBouncer(server, {USER: ""})) if plan.via == "pgbouncer" else None
            entry = bouncer or server
            proxy = stack.enter_context(TcpProxy(entry.host, entry.port))
            if bouncer is not None:
                url = bouncer.url(USER, port=proxy.port, pgbouncer="true")
            else:
                mode = "require" if plan.via == "tls" else "disable"
                url = server.url(user=USER, port=proxy.port, sslmode=mode)
            watch = stack.enter_context(Watch(server, USER, plan.pool_max))
            with asyncio.Runner(loop_factory=loop_factory(plan)) as runner:
                runner.run(self._run(seconds, url, proxy, bouncer, watch))
            gc.collect()
            if bouncer is None and not plan.silent and watch.crowded_for > CROWDED:
                self._bad(f"more than pool_max sessions for {watch.crowded_for:.2f} s")
        for heard in self._noise.take():
            self._bad(heard)

    def _bad(self, what: str) -> None:
        self.faults.append(what)

    async def _run(self, seconds: float, url: str, proxy: TcpProxy, bouncer: PgBouncer | None, watch: Watch) -> None:
        plan, loop = self._plan, asyncio.get_running_loop()
        loop.set_exception_handler(self._noise.from_loop)
        if plan.eager and not plan.uvloop and hasattr(asyncio, "eager_task_factory"):
            loop.set_task_factory(asyncio.eager_task_factory)
        lagging = asyncio.create_task(self._measure_lag())
        settings = DatabaseSettings(
            url=url, pool_max=plan.pool_max, session_reset=plan.session_reset, breaker_fail_max=plan.fail_max, **LIMITS
        )
        pool = GuardedPool(settings)
        borrowers = Borrowers(pool, random.Random(plan.seed))
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._spoil(end, pool, proxy, bouncer))
            if bouncer is not None:
                group.create_task(self._watch_clients(end, proxy))
            for _ in range(plan.borrowers):
                group.create_task(borrowers.keep_asking(end))
        await self._check_recovery(pool)
        await self._check_places(pool)
        await self._check_rest(pool, watch if bouncer is None else None)
        started = time.monotonic()
        await pool.close(timeout=1.0)
        if time.monotonic() - started > 1.0 + self._slack:
            self._bad(f"close(timeout=1.0) took {time.monotonic() - started:.2f} s")
        lagging.cancel()
        await asyncio.sleep(0.05)
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            self._bad(f"{len(left)} tasks are left, such as {next(iter(left))!r}"[:300])
        late = [late for late in borrowers.late if late > self._slack]
        if late:
            self._bad(f"{len(late)} waits outlived their timeout, by up to {max(late):.2f} s")
        for odd in set(borrowers.odd):
            self._bad(f"nobody should see this:\n{odd}")
        self.served, self.asked = borrowers.outcomes["served"], borrowers.outcomes.total()

    @property
    def _slack(self) -> float:
        return LATE + 2 * self._lag

    async def _measure_lag(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.01)
            self._lag = max(self._lag, time.monotonic() - started - 0.01)

    async def _watch_clients(self, end: float, proxy: TcpProxy) -> None:
        """A pooler's server shows the pooler's sessions; this pool's are the connections to the pooler."""
        crowded_since: float | None = None
        while (now := time.monotonic()) < end:
            if proxy.open_connections <= self._plan.pool_max:
                crowded_since = None
            elif now - (crowded_since := crowded_since or now) > CROWDED + self._slack:
                self._bad(f"{proxy.open_connections} connections to the pooler for {now - crowded_since:.2f} s")
                return
            await asyncio.sleep(0.005)

    # -- the faults --------------------------------------------------------------------------------------------------

    async def _spoil(self, end: float, pool: GuardedPool, proxy: TcpProxy, bouncer: PgBouncer | None) -> None:
        for fault in self._plan.faults():
            if time.monotonic() >= end:
                return
            self.did += fault.name != "quiet"
            try:
                await self._do(fault, pool, proxy, bouncer)
            finally:
                proxy.latency = 0.0
                proxy.deaf = proxy.hang = proxy.refuse = False
            await asyncio.sleep(fault.pause)

    async def _do(self, fault: Fault, pool: GuardedPool, proxy: TcpProxy, bouncer: PgBouncer | None) -> None:
        if fault.name in ("reset", "drop", "silence"):
            getattr(proxy, f"{fault.name}_all")()
        elif fault.name in ("refuse", "hang", "deaf"):
            setattr(proxy, fault.name, True)
        elif fault.name == "slow":
            proxy.latency = 0.005
        elif fault.name in ("terminate", "cancel"):
            end = f"SELECT pg_{fault.name}_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'"
            await asyncio.to_thread(self._server.psql, end)
            return
        elif fault.name == "restart" and bouncer is not None:
            await asyncio.to_thread(bouncer.stop)
            await asyncio.to_thread(bouncer.start)
            return
        elif fault.name == "restart":
            await asyncio.to_thread(self._server.restart, "immediate" if fault.lasts > 0.2 else "fast")
            return
        elif fault.name == "block":
            time.sleep(fault.lasts)  # noqa: ASYNC251  as an application does
            return
        elif fault.name == "disconnect":
            await pool.disconnect(timeout=fault.lasts)
            return
        await asyncio.sleep(fault.lasts)

    # -- what must hold afterwards -----------------------------------------------------------------------------------

    async def _check_recovery(self, pool: GuardedPool) -> None:
        started = time.monotonic()
        bound = RECOVERY * (2 if self._plan.silent else 1) + 2 * self._lag
        while True:
            try:
                await pool.ping()
            except (GuardError, TimeoutError) as error:
                if time.monotonic() - started > bound:
                    self._bad(f"the pool does not work {bound:.1f} s after the last fault: {error!r} {pool.stats()}")
                    return
                await asyncio.sleep(0.02)
            else:
                break
        if pool.stats()["circuit"] != "closed":
            self._bad(f"the pool works, but its circuit is {pool.stats()['circuit']}")
        failed: set[str] = set()
        for _ in range(20):
            answers = await asyncio.gather(
                *(pool.fetchval("SELECT 1") for _ in range(self._plan.pool_max)), return_exceptions=True
            )
            failed.update(repr(answer) for answer in answers if answer != 1)
        if failed:
            self._bad(f"after the recovery: {failed}")

    async def _check_places(self, pool: GuardedPool) -> None:
        """All `pool_max` connections can be lent at once; whoever wants one more learns that the pool is full."""
        async with AsyncExitStack() as stack:
            for number in range(self._plan.pool_max):
                try:
                    await stack.enter_async_context(pool.acquire(timeout=8.0))
                except GuardError as error:
                    self._bad(f"place {number + 1} of {self._plan.pool_max} is lost: {error!r} {pool.stats()}")
                    return
            try:
                await pool.ping(timeout=0.02)
            except AcquireTimeoutError as error:
                if isinstance(error, ConnectTimeoutError):
                    self._bad(f"the pool is full, and waits for a connect: {error!r}")

    async def _check_rest(self, pool: GuardedPool, watch: Watch | None) -> None:
        """After the idle timeout there is no session, neither here nor on the server."""
        deadline = time.monotonic() + 4.0 + 2 * self._lag
        while True:
            stats = pool.stats()
            busy = stats["lent"] or stats["idle"] or stats["waiting"] or (watch is not None and watch.now)
            if not busy:
                break
            if time.monotonic() > deadline:
                self._bad(f"not at rest: {stats}, {watch.now if watch is not None else 0} sessions on the server")
                return
            await asyncio.sleep(0.01)
        try:
            assert_accounts_balance(pool)
        except AssertionError as error:
            self._bad(f"the accounts do not balance: {error}")


def loop_factory(plan: Plan) -> type[asyncio.AbstractEventLoop] | None:
    """uvloop's, if the plan asks for it and it is installed."""
    with contextlib.suppress(ImportError):
        if plan.uvloop:
            import uvloop

            return uvloop.Loop
    return None


class Servers:
    """Starts each kind of server when a plan first needs it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._plain: Cluster | None = None
        self._tls: Cluster | None = None

    def get(self, plan: Plan) -> Cluster:
        if plan.via != "tls":
            self._plain = self._plain or self._stack.enter_context(Cluster.start(16))
            return self._plain
        if self._tls is None:
            directory = Path(self._stack.enter_context(TemporaryDirectory()))
            certificate = trustme.CA().issue_cert(Cluster.host)
            certificate.cert_chain_pems[0].write_to_path(directory / "server.crt")
            certificate.private_key_pem.write_to_path(directory / "server.key")
            files = directory / "server.crt", directory / "server.key"
            self._tls = self._stack.enter_context(Cluster.start(source="machine", tls=files))
        return self._tls
