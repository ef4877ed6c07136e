"""`python -m tests.soak`: a schedule of random faults for each seed. A failure prints how to run it again."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

from asyncdb_guard.testing.postgres.installation import Installation, PostgresNotFoundError
from tests.soak.noise import Noise
from tests.soak.plan import Plan, Via
from tests.soak.schedule import Schedule, Servers
from tests.support.pgbouncer import PgBouncer

VIAS: tuple[Via, ...] = ("direct", "tls", "pgbouncer")


def available() -> set[Via]:
    """How this machine can reach a server: TLS needs PostgreSQL's own packages, and the pooler its program."""
    found: set[Via] = {"direct"}
    if PgBouncer.found():
        found.add("pgbouncer")
    try:
        if Installation.find(source="machine").supports_tls:
            found.add("tls")
    except PostgresNotFoundError:
        pass
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, help="run the schedules of the seeds 1 to N (6)")
    parser.add_argument("--seed", type=int, help="run only this one")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long the faults of one schedule last (3)")
    parser.add_argument("--via", choices=VIAS, help="how the pool reaches the server, if not as the seed says")
    options = parser.parse_args()

    seeds = range(1, options.seeds + 1) if options.seed is None else [options.seed]
    noise, vias, failed = Noise(), available(), 0
    with ExitStack() as stack:
        servers = Servers(stack)
        for seed in seeds:
            plan = Plan.of(seed, options.via)
            if plan.via not in vias:
                print(f"seed {seed}: {plan.via} is not available here; direct instead")
                plan = replace(plan, via="direct")
            started = time.monotonic()
            schedule = Schedule(plan, servers.get(plan), noise)
            schedule.run(options.seconds)
            state = "BAD" if schedule.faults else "holds"
            print(
                f"seed {seed}: {plan}: {state}; {schedule.served} of {schedule.asked} served,"
                f" {time.monotonic() - started:.1f} s",
                flush=True,
            )
            for fault in schedule.faults:
                print(f"  {fault}")
            if schedule.faults:
                failed += 1
                again = f" --via {options.via}" if options.via else ""
                print(f"  again: python -m tests.soak --seed {seed} --seconds {options.seconds:g}{again}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
