"""`python -m tests.mutation`: how many small changes of the package some test notices, and which none does."""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
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
    "tests/test_failure_kind.py",
    "tests/test_health.py",
    "tests/test_judgement.py",
    "tests/test_queue.py",
    "tests/test_stats.py",
    "tests/cognito/test_event.py",
    "tests/cognito/test_claims.py",
    "tests/cognito/test_placeholders.py",
    "tests/cognito/test_outcome.py",
    "tests/cognito/test_statements.py::test_the_parts_of_a_statement",
    "tests/cognito/test_machines.py::test_a_client_is_all_that_the_event_says_of_one",
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


class Task(NamedTuple):
    """One run of a target's tests: with a mutant, or unchanged."""

    target: Target
    mutant: Mutant | None
    seconds: float
    """The time after which the run is ended."""

    @property
    def change(self) -> tuple[str, Any] | None:
        if self.mutant is None:
            return None
        path = source_of(self.mutant.module)
        return f"{zygote.PACKAGE}.{self.mutant.module}", compiled(self.mutant, path.read_text("utf-8"), str(path))


class Outcome(NamedTuple):
    task: Task
    result: str
    """`passed`, `failed` or `timeout`."""
    seconds: float
    output: str


def outcomes(tasks: Iterable[Task], jobs: int, server: Any) -> Iterator[Outcome]:
    """Run the tasks, `jobs` at a time; yield their outcomes in the order in which they end."""
    waiting, running = iter(tasks), list[tuple[Task, zygote.Run, Any]]()
    with ExitStack() as files:
        while True:
            for task in itertools.islice(waiting, jobs - len(running)):
                output = files.enter_context(tempfile.TemporaryFile("w+"))
                run = zygote.Run(task.target.arguments, task.seconds, server, task.change, output.fileno())
                running.append((task, run, output))
            if not running:
                return
            for entry in running.copy():
                task, run, output = entry
                if (result := run.result()) is not None:
                    running.remove(entry)
                    output.seek(0)
                    said = output.read()
                    output.close()
                    yield Outcome(task, result, time.monotonic() - run.started, said)
            time.sleep(0.01)


def baselines(chosen: list[Target], jobs: int, server: Any) -> dict[str, float]:
    """The seconds that the unchanged tests of each target take. Raises SystemExit where they fail twice."""
    seconds = dict[str, float]()
    for is_last_try in (False, True):  # a test of times may fail once on a busy machine
        missing = [target for target in chosen if target.name not in seconds]
        for outcome in outcomes([Task(target, None, 600.0) for target in missing], jobs, server):
            if outcome.result == "passed":
                seconds[outcome.task.target.name] = outcome.seconds
            elif is_last_try:
                name = outcome.task.target.name
                sys.exit(f"{outcome.output[-4000:]}\n{name}: the unchanged tests do not pass: {outcome.result}")
    return seconds


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
    chosen = _chosen(options)
    drawn = {target.name: _drawn(target, options) for target in chosen}
    with ExitStack() as stack:
        server: Any = None
        if not {name for target in chosen for name in target.tests} <= set(NO_SERVER):
            from asyncdb_guard.testing import TemporaryPostgres

            server = stack.enter_context(TemporaryPostgres.start(16))
        seconds = baselines(chosen, options.jobs, server)
        for target in chosen:
            print(f"{target.name}: the unchanged tests take {seconds[target.name]:.1f} s", flush=True)
            result = Result(target.name, Counter(), drawn[target.name].whole)
            tasks = [Task(target, mutant, 5.0 + 4.0 * seconds[target.name]) for mutant in drawn[target.name].mutants]
            for outcome in outcomes(tasks, options.jobs, server):
                mutant = outcome.task.mutant
                assert mutant is not None
                if outcome.result != "passed":
                    result.count[outcome.result] += 1
                elif (mutant.module, mutant.where, mutant.change) in known:
                    result.count["explained"] += 1
                else:
                    result.count["survived"] += 1
                    print(f"survived: {mutant}", flush=True)
            results.append(result)
            print(result, flush=True)
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


class Drawn(NamedTuple):
    mutants: list[Mutant]
    whole: int
    """As many as they were drawn from."""


def _drawn(target: Target, options: argparse.Namespace) -> Drawn:
    mutants = [one for one in mutants_of(target) if options.only is None or options.only in str(one)]
    if options.sample is None or options.sample >= len(mutants):
        return Drawn(mutants, len(mutants))
    return Drawn(random.Random(options.seed).sample(mutants, options.sample), len(mutants))


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
