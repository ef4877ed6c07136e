"""Errors that raise, or say something odd, when they are looked at: what somebody else may have written."""

from __future__ import annotations

import asyncpg


class WithANumber(asyncpg.PostgresError):
    sqlstate = 12345


class WithoutASqlstate(asyncpg.PostgresError):
    @property
    def sqlstate(self) -> str:
        raise ValueError("none")


class WithoutACause(Exception):
    @property
    def __cause__(self) -> BaseException:
        raise ValueError("none")


class WithoutAClass(Exception):
    @property
    def __class__(self) -> type:
        raise ValueError("none")
