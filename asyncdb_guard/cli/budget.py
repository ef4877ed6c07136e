"""`asyncdb-guard budget`: does the fleet fit, what makes the server enforce it, and which open periods suit it."""

from __future__ import annotations

import argparse
import asyncio

from rich.console import Console
from rich.text import Text

from asyncdb_guard.cli.arguments import (
    add_processes_option,
    add_server_options,
    concurrency,
    count,
    positive,
    server_model,
)
from asyncdb_guard.cli.server_facts import LOGINS, ServerQuestions
from asyncdb_guard.cli.simulate import seconds
from asyncdb_guard.fleet import SCENARIOS, FleetModel, Gate, OpenPeriods, ServerModel, open_periods, simulate
from asyncdb_guard.fleet.budget import Budget, Demand
from asyncdb_guard.settings import DatabaseSettings
from asyncdb_guard.settings.pooler_profile import DIRECT

NAME: str = "budget"
SUMMARY: str = "does a fleet fit its server, what enforces that, and which settings suit it"
DESCRIPTION: str = (
    "Ask the server of LAMBDA_DATABASE_URL whether a fleet's sessions fit, and print what to set. Exit code 0: they"
    " fit; 1: they do not, or nobody can tell; 2: the server could not be asked."
)

_MAIN = "the function"
_SIMULATED = 500
"""Environments that are simulated, at most: what counts is the quotient of N and C."""


def function(text: str) -> tuple[str, int]:
    """`name=environments`."""
    name, _, environments = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError("must be NAME=N")
    return name, concurrency(environments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `budget`."""
    parser.add_argument("--concurrency", type=concurrency, required=True, metavar="N", help="environments at most")
    parser.add_argument(
        "--function", type=function, action="append", default=[], metavar="NAME=N", dest="functions",
        help="another function with the same role, and its environments; may be repeated",
    )  # fmt: skip
    add_processes_option(parser)
    add_server_options(parser)
    parser.add_argument("--rate", type=positive, default=1.0, metavar="R", help="requests a second and environment (1)")
    parser.add_argument("--others", type=count, metavar="M", help="slots to leave to other roles (what they use now)")
    parser.add_argument("--role", metavar="ROLE", help="the fleet's role, where this command logs in as another one")
    parser.add_argument("--apply", action="store_true", help="set the role's limit, after showing it")


def run(options: argparse.Namespace, console: Console) -> int:
    """Ask, print, apply."""
    return asyncio.run(_run(options, _Report(console)))


async def _run(options: argparse.Namespace, report: _Report) -> int:
    settings = DatabaseSettings()
    demand = Demand({_MAIN: options.concurrency, **dict(options.functions)}, options.processes, settings.pool_max)
    server = server_model(options, iam=settings.iam_auth)
    async with ServerQuestions(settings) as questions:
        login = await questions.login_seconds()
        if settings.profile is not DIRECT:
            report.proxy(demand)
            fits, statement = False, None
        else:
            facts = await questions.facts(options.role)
            budget = Budget(facts, demand, facts.others_at_most if options.others is None else options.others)
            statement = await questions.limit_statement(facts.role, budget.limit)
            report.slots(budget, statement, options.others)
            fits = budget.fits and not budget.obstacles
        report.herd(demand, server, login)
        report.periods(demand, server, settings, options.rate)
        report.warnings(demand, settings)
        if options.apply and statement is not None:
            await questions.apply(statement)
            report.line("applied", f"{statement};")
    return 0 if fits else 1


class _Report:
    """Prints what was found, one line for each thing that one may want to know."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, label: str, text: str) -> None:
        """One line."""
        self._console.print(Text.assemble((f"{label:<9}", "bold"), text), soft_wrap=True)

    def slots(self, budget: Budget, statement: str, others_told: int | None) -> None:
        """The server's slots, whether the fleet fits, and what enforces that."""
        facts, demand = budget.facts, budget.demand
        limit = "no limit" if facts.role_limit is None else f"limit {facts.role_limit:,}"
        if others_told is not None:
            at_most = f"{others_told:,} are left to them"
        elif facts.others_limit is None:
            at_most = "no limit on them; set what to leave to them with --others"
        else:
            at_most = f"{facts.others_limit:,} at most"
        self.line(
            "server",
            f"max_connections {facts.max_connections:,}; reserved {facts.reserved:,}; role {facts.role}: {limit};"
            f" others use {facts.others:,} now, {at_most}",
        )
        verdict = "ok" if budget.fits else f"does not fit: {budget.refused_share:.0%} never get a session"
        self.line("fits", f"{demand.sessions:,} + {budget.others:,} of {facts.slots:,}: {verdict}")
        functions = "; ".join(
            f"reserved concurrency of {name}: {environments:,}"
            for name, environments in budget.reserved_concurrency.items()
        )
        self.line("enforce", f"{statement};   {functions}")
        for obstacle in budget.obstacles:
            self.line("warn", obstacle)
        if not budget.fits:
            self.line("warn", "No setting mends this: use fewer environments, a larger server, or a pooler.")

    def proxy(self, demand: Demand) -> None:
        """Behind a proxy, clients are not sessions."""
        self.line(
            "fits",
            f"unknown: behind a proxy {demand.sessions:,} clients share its sessions, and it tells neither how many"
            " clients it takes nor how many sessions it opens. Check both in its own settings (RDS Proxy:"
            " MaxConnectionsPercent; PgBouncer: max_client_conn, default_pool_size).",
        )

    def herd(self, demand: Demand, server: ServerModel, login: float) -> None:
        """How long all logins take."""
        self.line(
            "herd",
            f"login {login * 1000:.0f} ms from here (median of {LOGINS}); {server.capacity:,.0f} logins a second: all"
            f" {demand.pools:,} are back after {demand.pools / server.capacity:.1f} s at the earliest",
        )

    def periods(self, demand: Demand, server: ServerModel, settings: DatabaseSettings, rate: float) -> None:
        """The open periods that fit, and what they give."""
        fitted = open_periods(demand.pools, server.capacity)
        yours = OpenPeriods(settings.breaker_reset_timeout, settings.breaker_reset_timeout_max)
        self.line(
            "set",
            f"LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MS={fitted.first_ms}"
            f" LAMBDA_DATABASE_BREAKER_RESET_TIMEOUT_MAX_MS={fitted.longest_ms}"
            f"   (yours: {settings.breaker_reset_timeout_ms}, {settings.breaker_reset_timeout_max_ms})",
        )
        store = settings.fleet_url is not None
        told = [
            f"{what}: 99 % served after {seconds(_served_after(name, fitted, demand.pools, server, rate, store=store))}"
            f" (yours {seconds(_served_after(name, yours, demand.pools, server, rate, store=store))})"
            for name, what in (("restart", "4 s restart"), ("failover", "60 s failover"))
        ]
        share = fitted.trial_share(demand.pools, server.capacity)
        self.line("then", f"{'; '.join(told)}; trials ask for {share:.0%} of the server's logins")

    def warnings(self, demand: Demand, settings: DatabaseSettings) -> None:
        """What else costs sessions or logins."""
        if settings.iam_auth:
            self.line("warn", "IAM_AUTH: RDS takes 200 logins a second, whatever the server's size.")
        self.line(
            "warn",
            f"A deployment's old environments keep their sessions for up to {settings.idle_timeout:.0f} s"
            f" (IDLE_TIMEOUT_MS): up to {2 * demand.sessions:,} sessions are wanted meanwhile.",
        )


def _served_after(
    name: str, periods: OpenPeriods, pools: int, server: ServerModel, rate: float, *, store: bool
) -> float:
    simulated = min(pools, _SIMULATED)
    smaller = ServerModel(server.capacity * simulated / pools / ServerModel(1).capacity)
    fleet = FleetModel(simulated, rate, Gate(periods, store=store))
    return simulate(fleet, smaller, SCENARIOS[name], runs=max(1, _SIMULATED // simulated)).served_after(0.99)
