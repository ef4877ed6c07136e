"""`python -m tests.mutation`: how many small changes of the package some test notices, and which none does."""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutation import zygote
from tests.mutation.mutants import Mutant, compiled, mutants

HERE = Path(__file__).parent
BAR = 90.0
"""Per cent of the mutants, those that nothing could notice apart."""
CHANCE = 0.001
"""How seldom a sample may fall below the bar by chance alone, where the whole is at the bar."""
NO_SERVER = (
    "tests/test_breaker.py",
    "tests/test_breaker_news.py",
    "tests/test_breaker_machine.py",
    "tests/test_connections.py",
)


class Target(NamedTuple):
    """Modules, and the tests that must notice a change in them."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    slow: bool
    """Whether those of them that are marked slow run, too."""

    @property
    def part(self) -> str:
        return part_of(self.name)

    @property
    def arguments(self) -> list[str]:
        """For pytest."""
        return ["-m", "not debian" if self.slow else "not debian and not slow", *self.tests]


def part_of(name: str) -> str:
    """The part of the package that a target belongs to. A part may have several: `part/target`."""
    return name.partition("/")[0]


def targets() -> list[Target]:
    tables = tomllib.loads((HERE / "targets.toml").read_text(encoding="utf-8"))
    return [
        Target(name, tuple(table["modules"]), tuple(table["tests"]), table.get("slow", False))
        for name, table in tables.items()
    ]


def explained() -> set[tuple[str, str, str]]:
    """The mutants that no test could notice: module, place and change."""
    tables = tomllib.loads((HERE / "survivors.toml").read_text(encoding="utf-8"))["survivor"]
    return {(table["module"], table["where"], table["change"]) for table in tables}


def source_of(module: str) -> Path:
    """The file of a module of the package, without an import of it."""
    root = Path(zygote.PACKAGE, *module.split("."))
    return (root / "__init__.py" if root.is_dir() else root.with_suffix(".py")).resolve()


def mutants_of(target: Target) -> list[Mutant]:
    return [one for module in target.modules for one in mutants(module, source_of(module).read_text(encoding="utf-8"))]


class Result(NamedTuple):
    """What became of the mutants of a target, a part or all."""

    name: str
    count: Counter[str]
    """`failed`, `timeout`, `survived` and `explained`."""
    whole: int
    """The mutants that there are, of which the counted ones may be a sample."""

    @property
    def noticed(self) -> int:
        return self.count["failed"] + self.count["timeout"]

    @property
    def possible(self) -> int:
        """Those that a test could notice."""
        return self.count.total() - self.count["explained"]

    @property
    def score(self) -> float:
        """Per cent."""
        return 100.0 * self.noticed / self.possible if self.possible else 100.0

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.score:.1f} % noticed: {self.count['failed']} by a failure, {self.count['timeout']} by"
            f" a test without an end, {self.count['survived']} survived, {self.count['explained']} cannot be noticed,"
            f" of {self.whole} mutants"
        )


class Bench:
    """Runs a target's tests, unchanged or with a mutant, `jobs` at a time."""

    def __init__(self, target: Target, jobs: int, server: Any) -> None:
        self._target = target
        self._jobs = jobs
        self._server = server

    def baseline(self) -> float:
        """Seconds that the tests take unchanged. Raises SystemExit where they fail."""
        with tempfile.TemporaryFile("w+") as output:
            run = zygote.Run(self._target.arguments, 600.0, self._server, None, output.fileno())
            while (result := run.result()) is None:
                time.sleep(0.02)
            if result != "passed":
                output.seek(0)
                sys.exit(f"{output.read()[-4000:]}\n{self._target.name}: the unchanged tests do not pass: {result}")
            return time.monotonic() - run.started

    def results(self, chosen: list[Mutant], seconds: float) -> Iterator[tuple[Mutant, str]]:
        """Each mutant with what became of its run, in the order in which they end."""
        waiting, running = list(reversed(chosen)), dict[Mutant, zygote.Run]()
        with Path(os.devnull).open("w") as nowhere:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    mutant = waiting.pop()
                    change = self._change(mutant)
                    running[mutant] = zygote.Run(
                        self._target.arguments, seconds, self._server, change, nowhere.fileno()
                    )
                for mutant, run in list(running.items()):
                    if (result := run.result()) is not None:
                        del running[mutant]
                        yield mutant, result
                time.sleep(0.01)

    @staticmethod
    def _change(mutant: Mutant) -> tuple[str, Any]:
        path = source_of(mutant.module)
        return f"{zygote.PACKAGE}.{mutant.module}", compiled(mutant, path.read_text(encoding="utf-8"), str(path))


def main() -> int:
    names = list(dict.fromkeys(name for target in targets() for name in (target.part, target.name)))
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "--module", action="append", choices=names, help="only this part of the package or target; may be repeated"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants of each target, drawn by --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--only", help="only the mutants whose line of text contains this")
    parser.add_argument(
        "--tests", nargs="+", metavar="PATH", help="with these tests, in place of the ones in targets.toml"
    )
    options = parser.parse_args()

    zygote.warm_up()
    known, results = explained(), list[Result]()
    with ExitStack() as stack:
        server: Any = None
        for target in _chosen(options):
            chosen = [one for one in mutants_of(target) if options.only is None or options.only in str(one)]
            whole = len(chosen)
            if options.sample is not None and options.sample < whole:
                chosen = random.Random(options.seed).sample(chosen, options.sample)
            if server is None and not set(target.tests) <= set(NO_SERVER):
                from asyncdb_guard.testing import TemporaryPostgres

                server = stack.enter_context(TemporaryPostgres.start(16))
            bench, count = Bench(target, options.jobs, server), Counter[str]()
            seconds = bench.baseline()
            for mutant, result in bench.results(chosen, 5.0 + 4.0 * seconds):
                if result != "passed":
                    count[result] += 1
                elif (mutant.module, mutant.where, mutant.change) in known:
                    count["explained"] += 1
                else:
                    count["survived"] += 1
                    print(f"survived: {mutant}", flush=True)
            results.append(Result(target.name, count, whole))
            print(f"{results[-1]}; {seconds:.1f} s for the tests", flush=True)
    sums = [*_parts(results), _sum("all", results)]
    for result in sums:
        if result.name not in {one.name for one in results}:
            print(result)
    short = [result.name for result in sums if falls_short(result)]
    if short:
        print(f"Below {BAR:g} %: {', '.join(short)}")
    return 1 if short else 0


def _chosen(options: argparse.Namespace) -> list[Target]:
    chosen = [target for target in targets() if not options.module or {target.name, target.part} & set(options.module)]
    if options.tests:
        chosen = [target._replace(tests=tuple(options.tests), slow=False) for target in chosen]
    return chosen


def _parts(results: list[Result]) -> list[Result]:
    """One for each part of the package."""
    names = dict.fromkeys(part_of(result.name) for result in results)
    return [_sum(name, [result for result in results if part_of(result.name) == name]) for name in names]


def _sum(name: str, results: list[Result]) -> Result:
    return Result(name, sum((result.count for result in results), Counter[str]()), sum(one.whole for one in results))


def falls_short(result: Result) -> bool:
    """Whether the tests notice less than the bar.

    A sample says that only if it would come out as it did less often than `CHANCE` where the tests notice just enough.
    """
    if result.count.total() == result.whole:
        return result.score < BAR
    share, size = BAR / 100, result.possible
    as_bad = sum(math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(result.noticed + 1))
    return as_bad < CHANCE


if __name__ == "__main__":
    sys.exit(main())
