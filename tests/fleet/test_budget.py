"""Whether a fleet's sessions fit a server: sums alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncdb_guard.fleet.budget import Budget, Demand, ServerFacts

SERVER = ServerFacts(
    max_connections=1000, reserved=3, role="app", role_limit=None, role_is_superuser=False, database_limit=None,
    others=40, others_limit=None,
)  # fmt: skip


def budget(environments: int, others: int = 97, facts: ServerFacts = SERVER, **demand: int) -> Budget:
    return Budget(facts, Demand({"a": environments}, **demand), others)


def test_a_fleet_fits_to_the_last_slot() -> None:
    assert budget(900).fits
    assert not budget(901).fits
    assert (budget(900).limit, budget(901).limit) == (900, 900)
    assert budget(900).refused_share == 0.0


def test_what_does_not_fit_is_shared_alike() -> None:
    both = Budget(SERVER, Demand({"a": 1200, "b": 600}), others=97)
    assert both.limit == 900
    assert both.refused_share == pytest.approx(0.5)
    assert both.reserved_concurrency == {"a": 600, "b": 300}


def test_others_that_want_everything_leave_nothing() -> None:
    assert budget(10, others=2000).limit == 0


def test_processes_and_places_multiply() -> None:
    demand = Demand({"a": 10, "b": 5}, processes=4, pool_max=2)
    assert (demand.pools, demand.sessions) == (60, 120)


@pytest.mark.parametrize(
    ("changed", "obstacles"),
    [
        ({}, 0),
        ({"role_limit": 100}, 0),
        ({"role_limit": 99}, 1),
        ({"role_is_superuser": True, "role_limit": 99}, 1),
        ({"database_limit": 197}, 0),
        ({"database_limit": 196}, 1),
    ],
)
def test_a_limit_below_the_demand_is_an_obstacle(changed: dict[str, object], obstacles: int) -> None:
    assert len(budget(100, facts=replace(SERVER, **changed)).obstacles) == obstacles


@pytest.mark.parametrize(
    ("changed", "ceiling"),
    [
        ({}, (997, "max_connections")),
        ({"role_limit": 50}, (50, "the role's CONNECTION LIMIT")),
        ({"role_limit": 50, "database_limit": 20}, (20, "the database's CONNECTION LIMIT")),
        ({"role_limit": 50, "role_is_superuser": True}, (997, "max_connections")),
        ({"role_limit": 5000}, (997, "max_connections")),
    ],
)
def test_the_lowest_limit_bounds_the_fleet(changed: dict[str, int], ceiling: tuple[int, str]) -> None:
    assert replace(SERVER, **changed).ceiling == ceiling


def test_what_is_left_to_others_is_what_they_use_or_may_use() -> None:
    assert SERVER.others_at_most == 40
    assert replace(SERVER, others_limit=60).others_at_most == 60
    assert replace(SERVER, others_limit=10).others_at_most == 40
