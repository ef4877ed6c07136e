"""What it costs to be told no: a borrow while the circuit is open, after a connect that nobody answered."""

from __future__ import annotations

import contextlib

from aiobreaker import CircuitBreakerError

from asyncdb_guard import CircuitOpenError, ConnectFailedError, DatabaseSettings, GuardedPool
from asyncdb_guard.testing.ports import LOOPBACK, free_port
from tests.benchmarks.by_hand import Database, Settings
from tests.benchmarks.contestants import Borrower
from tests.benchmarks.figures import Figure, Spread
from tests.benchmarks.warm import take_turns

REFUSAL = "Refusal while the circuit is open"
_BARS = {"GuardedPool": 15.0}
_HOUR_MS = 3_600_000


async def refusals(*, rounds: int, batch: int) -> list[Figure]:
    url = f"postgresql://nobody@{LOOPBACK}:{free_port()}/nothing"
    settings = DatabaseSettings(
        url=url, breaker_fail_max=1, breaker_reset_timeout_ms=_HOUR_MS, breaker_reset_timeout_max_ms=_HOUR_MS
    )
    # no password and no TLS: a second attempt in plain text would only double the one that opens the circuit
    database = Database(Settings(url=url, breaker_fail_max=1, breaker_reset_timeout_ms=_HOUR_MS))  # type: ignore[arg-type]
    async with GuardedPool(settings) as pool:

        async def ours() -> None:
            with contextlib.suppress(CircuitOpenError):
                async with pool.acquire():
                    raise AssertionError("the circuit is closed")

        async def by_hand() -> None:
            with contextlib.suppress(CircuitBreakerError):
                await database.fetchval("SELECT 1")

        with contextlib.suppress(ConnectFailedError):
            await pool.ping()
        await by_hand()
        samples = await take_turns({"GuardedPool": Borrower(ours), "by hand": Borrower(by_hand)}, rounds, batch)
    return [
        Figure(REFUSAL, name, Spread.of([sample * 1e6 for sample in own]), "µs", bar=_BARS.get(name))
        for name, own in samples.items()
    ]
