"""Many environments before one server: how long their circuits should stay open, and what an outage does to them."""

from asyncdb_guard.fleet.policy import OpenPeriods, logins_per_second, open_periods

__all__ = ["OpenPeriods", "logins_per_second", "open_periods"]
