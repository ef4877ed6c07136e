"""Errors that raise, or say something odd, when they are looked at: what somebody else may have written."""

from __future__ import annotations

import asyncpg


class WithANumber(asyncpg.PostgresError):
    sqlstate = 12345  # type: ignore[assignment]  # a class that is at odds with its base, on purpose, as all here are


class WithoutASqlstate(asyncpg.PostgresError):
    @property
    def sqlstate(self) -> str:  # type: ignore[override]
        raise ValueError("none")


class WithoutACause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise ValueError("none")


class WithoutAClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise ValueError("none")
