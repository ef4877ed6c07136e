"""`asyncdb-guard`: finds the command, runs it, and turns errors of ours into one sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from asyncdb_guard.errors import GuardError

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 2
"""The exit code where a command could not do its work. 0 is good, 1 is bad news."""

_INTERRUPTED = 130

_WIDTH = 100
"""Columns, where the output goes to a file."""

_NO_RICH = "asyncdb-guard needs the package rich. Install it: pip install 'asyncdb-guard[cli]'.\n"


class Command(Protocol):
    """What a module of a command has."""

    NAME: str
    SUMMARY: str
    DESCRIPTION: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add its options."""
        ...

    def run(self, options: argparse.Namespace, console: Console) -> int:
        """Do its work; return the exit code."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. `arguments`: those of this process, unless given."""
    if importlib.util.find_spec("rich") is None:
        sys.stderr.write(_NO_RICH)
        return FAILED
    from rich.console import Console

    options = _parser().parse_args(arguments)
    width = None if sys.stdout.isatty() else _WIDTH
    try:
        return int(options.run(options, Console(highlight=False, width=width)))
    except GuardError as error:
        _complain(Console(stderr=True, highlight=False), str(error))
        return FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    # here, as these modules import rich
    from asyncdb_guard.cli import budget, doctor, simulate, watch

    parser = argparse.ArgumentParser(
        prog="asyncdb-guard", description="Plan, examine and watch a fleet of environments before one PostgreSQL."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    modules: tuple[Command, ...] = (doctor, budget, simulate, watch)
    for module in modules:
        command = commands.add_parser(module.NAME, help=module.SUMMARY, description=module.DESCRIPTION)
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser


def _complain(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
