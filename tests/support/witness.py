"""A pool that remembers why its sessions ended, and a clock that is ahead."""

from __future__ import annotations

import time
from typing import Any

import pytest

from asyncdb_guard import DatabaseSettings, Event, GuardedPool, clock
from tests.support.bound import assert_accounts_balance, at_rest


class Witness(GuardedPool):
    """It remembers why its sessions ended."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.heard: list[Event] = []
        super().__init__(DatabaseSettings(url=url, **settings), on_event=self.heard.append)

    def endings(self) -> list[tuple[str, str]]:
        ends: list[Any] = [one for one in self.heard if one.name in {"connection_replaced", "connection_closed"}]
        return [(event.name.removeprefix("connection_"), event.reason) for event in ends]

    async def works(self) -> list[tuple[str, str]]:
        """Why sessions have ended, once the next borrower was served and returned what it got."""
        assert await self.fetchval("SELECT 1") == 1
        await at_rest(self)
        assert_accounts_balance(self)
        assert (self.stats()["failures"], self.stats()["circuit"]) == (0, "closed")
        return self.endings()


def ahead(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What a process finds that was frozen: its timers are not due yet."""
    monkeypatch.setattr(clock, "now", lambda: (time.monotonic(), time.time() + seconds))
