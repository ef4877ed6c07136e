"""`python -m tests.soak`: a schedule of random faults for each seed. A failure prints how to run it again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from asyncdb_guard.testing.postgres.installation import Installation, PostgresNotFoundError
from tests.soak.noise import Noise
from tests.soak.plan import COVERING, Plan, Via
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
    parser.add_argument("--seeds", type=int, help="run the schedules of the seeds 1 to N, not only the usual six")
    parser.add_argument("--seed", type=int, help="run only this one")
    parser.add_argument("--all", action="store_true", help="fail if a way to the server is not available here")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long the faults of one schedule last (3)")
    parser.add_argument("--via", choices=VIAS, help="how the pool reaches the server, if not as the seed says")
    options = parser.parse_args()

    seeds: Sequence[int]
    if options.seed is not None:
        seeds = [options.seed]
    else:
        seeds = range(1, options.seeds + 1) if options.seeds is not None else COVERING
    noise, vias = Noise(), available()
    failed = served = asked = faults = 0
    began = time.monotonic()
    with ExitStack() as stack:
        servers = Servers(stack)
        for seed in seeds:
            plan = Plan.of(seed, options.via)
            if plan.via not in vias and options.all:
                parser.error(f"seed {seed}: {plan.via} is not available here")
            if plan.via not in vias:
                print(f"seed {seed}: {plan.via} is not available here; direct instead")
                plan = replace(plan, via="direct")
            started = time.monotonic()
            schedule = Schedule(plan, servers.get(plan), noise)
            schedule.run(options.seconds)
            served, asked, faults = served + schedule.served, asked + schedule.asked, faults + schedule.did
            state = "BAD" if schedule.faults else "holds"
            print(
                f"seed {seed}: {plan}: {state}; {schedule.served} of {schedule.asked} served,"
                f" {schedule.did} faults, {time.monotonic() - started:.1f} s",
                flush=True,
            )
            for fault in schedule.faults:
                print(f"  {fault}")
            if schedule.faults:
                failed += 1
                again = f" --via {options.via}" if options.via else ""
                print(f"  again: python -m tests.soak --seed {seed} --seconds {options.seconds:g}{again}", flush=True)
    print(f"{len(seeds)} seeds, {asked} borrows, {served} served, {faults} faults, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
