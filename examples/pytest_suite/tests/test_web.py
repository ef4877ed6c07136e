"""The web API, in the test's own event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from asyncdb_guard import GuardedPool

ClientOf = Callable[[GuardedPool], httpx.AsyncClient]


async def test_notes_come_back(rolled_back_pool: GuardedPool, client_of: ClientOf) -> None:
    async with client_of(rolled_back_pool) as client:
        assert (await client.post("/users/ada/notes", json=["one"])).json() == 1
        assert (await client.get("/users/ada/notes")).json() == ["one"]


async def test_an_unknown_author_is_not_found(rolled_back_pool: GuardedPool, client_of: ClientOf) -> None:
    async with client_of(rolled_back_pool) as client:
        assert (await client.post("/users/nobody/notes", json=["one"])).status_code == 404


async def test_an_open_circuit_is_a_503_that_says_when_to_come_back(
    guarded_pool: GuardedPool, client_of: ClientOf, open_circuit: Any
) -> None:
    async with client_of(guarded_pool) as client:
        with open_circuit(guarded_pool):
            answer = await client.get("/users/ada/notes")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await client.get("/users/ada/notes")).status_code == 200


async def test_a_database_that_is_down_is_a_503(
    guarded_pool: GuardedPool, client_of: ClientOf, database_down: Any
) -> None:
    async with client_of(guarded_pool) as client:
        assert (await client.get("/health")).json() == {"circuit": "closed"}
        with database_down(guarded_pool):
            answers = [await client.get("/health") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [503] * 4
            assert "Retry-After" not in answers[0].headers
            assert "Retry-After" in answers[-1].headers
        assert (await client.get("/health")).json() == {"circuit": "closed"}


async def test_what_was_written_is_there_after_an_outage(
    rolled_back_pool: GuardedPool, client_of: ClientOf, database_down: Any
) -> None:
    async with client_of(rolled_back_pool) as client:
        await client.post("/users/ada/notes", json=["one"])
        with database_down(rolled_back_pool):
            assert (await client.get("/users/ada/notes")).status_code == 503
        assert (await client.get("/users/ada/notes")).json() == ["one"]


async def test_a_trial_gets_through_when_its_time_has_come(
    guarded_pool: GuardedPool, client_of: ClientOf, open_circuit: Any, manual_clock: Any
) -> None:
    async with client_of(guarded_pool) as client:
        with open_circuit(guarded_pool):
            refusal = await client.get("/health")
            manual_clock.advance(int(refusal.headers["Retry-After"]))
            assert (await client.get("/health")).json() == {"circuit": "closed"}
