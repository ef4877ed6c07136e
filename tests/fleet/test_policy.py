"""Which open periods fit a fleet."""

from __future__ import annotations

import pytest

from asyncdb_guard.fleet import Misfit, OpenPeriods, logins_per_second, open_periods


@pytest.mark.parametrize(
    ("vcpu", "iam", "capacity"), [(1, False, 200.0), (4, False, 800.0), (4, True, 200.0), (0.5, True, 100.0)]
)
def test_a_vcpu_takes_200_logins_a_second_and_iam_200_in_all(vcpu: float, iam: bool, capacity: float) -> None:
    assert logins_per_second(vcpu, iam=iam) == capacity


@pytest.mark.parametrize(
    ("environments", "capacity", "first", "longest"),
    [
        pytest.param(50, 400.0, 0.5, 2.0, id="small"),
        pytest.param(1_000, 800.0, 5 / 3, 5.0, id="usual"),
        pytest.param(1_000, 200.0, 20 / 3, 20.0, id="iam"),
        pytest.param(100_000, 25_600.0, 5.2083, 15.625, id="large"),
    ],
)
def test_both_periods_follow_from_the_time_that_all_logins_take(
    environments: int, capacity: float, first: float, longest: float
) -> None:
    periods = open_periods(environments, capacity)
    assert periods.first == pytest.approx(first, rel=1e-4)
    assert periods.longest == pytest.approx(longest)


def test_a_setting_is_rounded_up_to_a_tenth_of_a_second() -> None:
    periods = open_periods(1_000, 800.0)
    assert (periods.first_ms, periods.longest_ms) == (1700, 5000)
    assert (OpenPeriods(0.5, 2.0).first_ms, OpenPeriods(0.5, 2.0).longest_ms) == (500, 2000)


@pytest.mark.parametrize("environments", [400, 1_000, 100_000])
def test_in_a_long_outage_the_fleet_asks_for_a_third_of_what_the_server_can_take(environments: int) -> None:
    assert open_periods(environments, 800.0).trial_share(environments, 800.0) == pytest.approx(1 / 3)


def test_a_small_fleet_asks_for_less() -> None:
    assert open_periods(50, 400.0).trial_share(50, 400.0) < 0.1


@pytest.mark.parametrize("environments", [50, 1_000, 100_000])
@pytest.mark.parametrize(
    ("factor", "misfit"), [(0.8, Misfit.SHORT), (0.95, None), (1, None), (3.9, None), (4.1, Misfit.LONG)]
)
def test_periods_fit_from_nine_tenths_of_what_they_should_be_to_four_times(
    environments: int, factor: float, misfit: Misfit | None
) -> None:
    fitted = open_periods(environments, 800.0)
    assert OpenPeriods(factor * fitted.first, factor * fitted.longest).misfit(environments, 800.0) is misfit


@pytest.mark.parametrize("factor", [0.8, 4.1])
def test_each_of_both_periods_counts(factor: float) -> None:
    fitted = open_periods(1_000, 800.0)
    assert OpenPeriods(factor * fitted.first, fitted.longest).misfit(1_000, 800.0)
    assert OpenPeriods(fitted.first, factor * fitted.longest).misfit(1_000, 800.0)


@pytest.mark.parametrize("periods", [OpenPeriods(2.0, 5.0), OpenPeriods(1.0, 10.0)])
def test_the_capacity_that_periods_need_is_where_they_stop_to_be_too_short(periods: OpenPeriods) -> None:
    needed = periods.capacity_needed(10_000)
    assert periods.misfit(10_000, 0.99 * needed) is Misfit.SHORT
    assert periods.misfit(10_000, 1.01 * needed) is None
