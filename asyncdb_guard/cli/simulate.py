"""`asyncdb-guard simulate`: what an outage does to a fleet, by policy."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from asyncdb_guard.cli import picture
from asyncdb_guard.cli.arguments import add_server_options, concurrency, count, positive, server_model
from asyncdb_guard.errors import GuardError
from asyncdb_guard.fleet import (
    SCENARIOS,
    FleetModel,
    Gate,
    OpenPeriods,
    Result,
    Scenario,
    ServerModel,
    open_periods,
    simulate,
)
from asyncdb_guard.settings import DatabaseSettings

NAME: str = "simulate"
SUMMARY: str = "what an outage does to a fleet, by policy"
DESCRIPTION: str = (
    "Simulate a fleet of environments, with the real circuit breaker, through an outage of their server. No database is"
    " asked. 100,000 environments take up to a minute for each policy."
)

_NO_DATABASE = "postgresql://nobody@localhost/none"
"""No database is asked, but settings need one."""

_TOO_SMALL = (
    "No setting mends a server that is too small. Set CONNECTION LIMIT on the role, so that others still get in; then"
    " use fewer environments, or a pooler."
)

_HEADINGS = (
    "attempts\neach", "peak\n÷ C", "99 %\nback", "failed\nduring", "failed\nafter", "hung", "57P03\nCPU",
    "others\nrefused",
)  # fmt: skip
_LEGEND = (
    "attempts: connects during the outage, for each environment; peak: connects a second once the server is back; back:"
    " seconds until 99 % of all requests are served; hung: of those that failed, how many waited for a timeout; 57P03:"
    " the share of a starting server's CPU that refusals take; others: connects of another service, turned away."
)


@dataclass(frozen=True)
class Policy:
    """What stands between the requests and the database, and what to call that."""

    name: str
    gate: Gate | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `simulate`."""
    parser.add_argument("--concurrency", type=concurrency, required=True, metavar="N", help="environments")
    parser.add_argument("--rate", type=positive, default=1.0, metavar="R", help="requests a second and environment (1)")
    add_server_options(parser)
    parser.add_argument("--iam", action="store_true", help="IAM logins: RDS takes 200 a second in all")
    parser.add_argument("--outage", choices=list(SCENARIOS), default="restart", help="what happens (restart)")
    parser.add_argument(
        "--policy",
        default="set,fitted,store,no-gate",
        metavar="P,P",
        help="`set`: this environment's settings, else the defaults; `fitted`: the periods that fit N and C; `store`:"
        " the same with a fleet store (FLEET_URL); `no-gate`; or FIRST/LONGEST, open periods in milliseconds such as"
        " 10000/60000 (set,fitted,store,no-gate)",
    )
    parser.add_argument("--role-limit", type=count, metavar="L", help="CONNECTION LIMIT of the role")
    parser.add_argument("--runs", type=count, metavar="K", help="simulations to take the mean of (enough for N)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other chances (0)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw it, too; needs matplotlib")


def run(options: argparse.Namespace, console: Console) -> int:
    """Simulate each policy and print the table."""
    if options.png is not None:
        picture.require(options.png)
    scenario = SCENARIOS[options.outage]
    server = _server(options, scenario)
    results: dict[str, Result] = {}
    for policy in _policies(options, server):
        fleet = FleetModel(options.concurrency, options.rate, policy.gate)
        with console.status(f"Simulating {policy.name} …"):
            results[policy.name] = simulate(fleet, server, scenario, seed=options.seed, runs=options.runs)
    console.print(
        f"{options.concurrency:,} environments, {options.rate:g} requests a second each; a server that takes"
        f" {server.capacity:,.0f} logins a second: all are back after {options.concurrency / server.capacity:.1f} s at"
        " the earliest.",
        soft_wrap=True,
    )
    console.print()
    console.print(_table(results, scenario))
    console.print(_LEGEND, soft_wrap=True)
    if scenario.slots_per_environment is not None:
        console.print(_TOO_SMALL, soft_wrap=True)
    if options.png is not None:
        picture.draw(options.png, results, scenario, options.concurrency)
        console.print(f"The picture: {options.png}", markup=False, soft_wrap=True)
    return 0


def _server(options: argparse.Namespace, scenario: Scenario) -> ServerModel:
    server = replace(server_model(options, iam=options.iam), role_limit=options.role_limit)
    if scenario.slots_per_environment is None:
        return server
    return replace(server, slots=max(1, round(options.concurrency * scenario.slots_per_environment)))


def _policies(options: argparse.Namespace, server: ServerModel) -> list[Policy]:
    return [_policy(word.strip(), options.concurrency, server) for word in options.policy.split(",")]


def _policy(word: str, environments: int, server: ServerModel) -> Policy:
    if word == "no-gate":
        return Policy("no gate", None)
    if word == "set":
        settings = DatabaseSettings(url=_NO_DATABASE)
        periods = OpenPeriods(settings.breaker_reset_timeout, settings.breaker_reset_timeout_max)
        gate = Gate(periods, settings.breaker_fail_max, store=settings.fleet_url is not None)
        return Policy(f"set {_label(periods)}", gate)
    if word in ("fitted", "store"):
        periods = open_periods(environments, server.capacity)
        return Policy(f"{word} {_label(periods)}", Gate(periods, store=word == "store"))
    first, _, longest = word.partition("/")
    if first.isdecimal() and longest.isdecimal() and 0 < int(first) <= int(longest):
        periods = OpenPeriods(int(first) / 1000, int(longest) / 1000)
        return Policy(_label(periods), Gate(periods))
    raise GuardError(
        f"--policy knows no {word!r}. Use set, fitted, store, no-gate, or FIRST/LONGEST in milliseconds, such as"
        " 2000/5000."
    )


def _label(periods: OpenPeriods) -> str:
    return f"{periods.first_ms}/{periods.longest_ms}"


def _table(results: dict[str, Result], scenario: Scenario) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.title = f"{scenario.name}: the server is away for {scenario.seconds:g} s"
    table.add_column("policy", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.attempts_per_environment:.1f}",
            f"{result.peak:.1f}",
            seconds(result.served_after(0.99)),
            f"{result.failed_during:,.0f}",
            f"{result.failed_after:,.0f}",
            f"{result.hung_share:.0%}",
            f"{result.starting_share:.0%}",
            f"{result.bystander_share:.0%}",
        )
    return table


def seconds(value: float) -> str:
    """Seconds until the fleet is served, for people."""
    return "never" if value == math.inf else f"{value:.1f} s"
