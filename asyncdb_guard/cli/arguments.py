"""Types and groups of options that several commands have."""

from __future__ import annotations

import argparse
import math

from asyncdb_guard.fleet import ServerModel, logins_per_second

CONCURRENCY_MAX = 100_000


def count(text: str) -> int:
    """A whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def concurrency(text: str) -> int:
    """A number of environments."""
    number = count(text)
    if number > CONCURRENCY_MAX:
        raise argparse.ArgumentTypeError(f"must be at most {CONCURRENCY_MAX:,}")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def add_processes_option(parser: argparse.ArgumentParser) -> None:
    """How many pools an environment has."""
    parser.add_argument("--processes", type=count, default=1, metavar="P", help="processes of each environment (1)")


def add_server_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """How fast the server is: one of two ways to tell."""
    capacity = parser.add_mutually_exclusive_group(required=required)
    capacity.add_argument("--vcpu", type=positive, metavar="V", help="vCPUs of the server: 200 logins a second each")
    capacity.add_argument("--connects-per-second", type=positive, metavar="C", help="logins a second that it takes")


def server_model(options: argparse.Namespace, *, iam: bool) -> ServerModel:
    """The server that the options describe. `iam`: its logins are IAM's, which RDS throttles."""
    vcpu = options.vcpu or options.connects_per_second / logins_per_second(1)
    capacity = logins_per_second(vcpu, iam=iam)
    throttled = capacity < logins_per_second(vcpu)
    # a postmaster accepts 4,000 a second, so a faster server is several
    return ServerModel(vcpu, logins_per_second=capacity if throttled else None, hosts=math.ceil(capacity / 4000))
