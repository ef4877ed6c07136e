"""The same written by hand: what a careful person puts together from asyncpg, pydantic-settings and aiobreaker.

It has the same knobs and does much less: nothing here survives a freeze, a hung server, a fork or another event loop.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import asyncpg
from aiobreaker import CircuitBreaker
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="LAMBDA_DATABASE_", frozen=True)

    url: SecretStr
    pool_max: int = Field(default=1, ge=1, le=100)
    connect_timeout_ms: int = Field(default=2000, ge=1, le=300_000)
    idle_timeout_ms: int = Field(default=60_000, ge=100)
    command_timeout_ms: int = Field(default=3000, ge=1, le=900_000)
    handler_budget_ms: int = Field(default=4000, ge=1, le=5000)
    breaker_fail_max: int = Field(default=3, ge=1)
    breaker_reset_timeout_ms: int = Field(default=2000, ge=1)
    sslmode: Literal["disable", "require", "verify-ca", "verify-full"] = "disable"
    claims_cache_ttl_ms: int = Field(default=60_000, ge=0)
    claims_sql: str | None = None
    provision_sql: str | None = None


class Database:
    """A pool behind a breaker; opens with its first statement."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()  # type: ignore[call-arg]  # the environment has it
        self._pool: asyncpg.Pool | None = None
        self._breaker = CircuitBreaker(
            fail_max=self.settings.breaker_fail_max,
            timeout_duration=timedelta(milliseconds=self.settings.breaker_reset_timeout_ms),
        )

    async def fetchval(self, query: str, *args: object) -> Any:
        return await self._breaker.call_async(self._fetchval, query, *args)

    async def _fetchval(self, query: str, *args: object) -> Any:
        if self._pool is None:
            self._pool = await self._open()
        async with self._pool.acquire(timeout=self.settings.connect_timeout_ms / 1000) as connection:
            return await connection.fetchval(query, *args)

    async def _open(self) -> asyncpg.Pool:
        return await asyncpg.create_pool(
            self.settings.url.get_secret_value(),
            min_size=self.settings.pool_max,
            max_size=self.settings.pool_max,
            max_inactive_connection_lifetime=self.settings.idle_timeout_ms / 1000,
            command_timeout=self.settings.command_timeout_ms / 1000,
            timeout=self.settings.connect_timeout_ms / 1000,
            ssl=self.settings.sslmode,
        )

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
