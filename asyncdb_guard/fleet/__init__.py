"""Many environments before one server: how long their circuits should stay open, and what an outage does to them."""

from asyncdb_guard.fleet.policy import Misfit, OpenPeriods, logins_per_second, open_periods
from asyncdb_guard.fleet.results import Result
from asyncdb_guard.fleet.scenarios import SCENARIOS, Scenario
from asyncdb_guard.fleet.server import ServerModel
from asyncdb_guard.fleet.simulation import FleetModel, Gate, simulate

__all__ = [
    "SCENARIOS",
    "FleetModel",
    "Gate",
    "Misfit",
    "OpenPeriods",
    "Result",
    "Scenario",
    "ServerModel",
    "logins_per_second",
    "open_periods",
    "simulate",
]
