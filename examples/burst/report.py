"""The output: the live view of a run, the table of all runs, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.burst.measurements import Run, shown
from examples.burst.scenario import PoolName

NAMES: dict[PoolName, str] = {
    "plain": "asyncpg.create_pool()",
    "guarded": "GuardedPool()",
    "fleet": "GuardedPool() with a role limit and a fleet store",
}
HEADS: dict[PoolName, str] = {
    "plain": "asyncpg's\npool",
    "guarded": "GuardedPool()",
    "fleet": "GuardedPool()\nrole limit\nfleet store",
}
STYLES: dict[PoolName, str] = {"plain": "red", "guarded": "green", "fleet": "cyan"}
LINE_EVERY = 2.0
BAR_WIDTH = 30

Show = Callable[[Run], None]


@contextmanager
def progress(console: Console) -> Generator[Show, None, None]:
    """Yield a function that shows a run in progress: bars on a terminal, a line every two seconds elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            yield lambda run: live.update(_bars(run))
    else:
        printer = _LinePrinter(console)
        yield printer.show


def table(runs: Sequence[Run]) -> Table:
    """All runs side by side."""
    plain = runs[0]
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("Environments", lambda run: f"{run.scenario.environments(run.pool):,}"),
        (f"Peak sessions (limit {plain.scenario.max_connections})", lambda run: f"{run.peak}"),
        ("Bystander's requests failed", lambda run: f"{run.turned_away:,}"),
        ("Bystander's requests served", lambda run: f"{run.served:,}"),
        ("Sign-ups before the outage", lambda run: f"{run.done_before_outage:,}"),
        ("Sign-ups completed in total", lambda run: f"{run.done:,}"),
        ("Sign-ups failed", lambda run: f"{run.failed:,}"),
        ("Sign-up time, p50", lambda run: f"{run.percentile(50) * 1000:,.0f} ms"),
        ("Sign-up time, p99", lambda run: f"{run.percentile(99) * 1000:,.0f} ms"),
        ("Connects tried in the outage", lambda run: f"{run.attempts:,}"),
        ("Attempts failed afterwards", lambda run: f"{run.failed_after:,}"),
        ("The last of them after", lambda run: f"{run.last_failure:.1f} s"),
    ]
    result = Table()
    result.add_column("", no_wrap=True)
    for run in runs:
        result.add_column(HEADS[run.pool], no_wrap=True, justify="right", style=STYLES[run.pool])
    for name, figure in rows:
        result.add_row(name, *map(figure, runs))
    return result


def meaning(plain: Run, guarded: Run, fleet: Run) -> str:
    """Return the conclusion, or what the runs should have shown and did not."""
    if not shown(plain, guarded, fleet):
        return (
            "The runs did not show what they should: the plain fleet locks the bystander out; the guarded fleets never "
            "do, complete more sign-ups, and make fewer connection attempts during the outage. Run the demo again on "
            "an idle machine."
        )
    environments = fleet.scenario.environments(fleet.pool)
    return (
        f"What it means: with asyncpg's default of ten connections each, {plain.scenario.processes} processes lock out "
        "every other client of the database, and keep trying to connect while it is down. Limited to one connection "
        "each, behind a circuit breaker, the same processes complete more sign-ups, and no other client is affected. "
        f"Even {environments} environments do not fill the server, whose limit on their role is {fleet.limit}, and a "
        "word in the fleet store brings them back together."
    )


def _bars(run: Run) -> Padding:
    """The live view: one line per figure."""
    scenario = run.scenario
    people = scenario.processes * len(scenario.arrivals)
    sessions = run.samples[-1].sessions if run.samples else 0
    grid = Table.grid(padding=(0, 2))
    grid.add_row(NAMES[run.pool], f"{max(run.now, 0):.0f} s", run.phase)
    grid.add_row("sessions", _bar(sessions, scenario.max_connections), f"{sessions} of {scenario.max_connections}")
    grid.add_row("sign-ups", _bar(len(run.sign_ups), people), f"{run.done} completed, {run.failed} failed, of {people}")
    grid.add_row("bystander", _bar(run.served, len(run.visits)), f"{run.served} served, {run.turned_away} failed")
    grid.add_row("attempts in outage", "", f"{run.attempts}")
    return Padding(grid, (0, 0, 0, 2))


def _bar(part: int, whole: int) -> ProgressBar:
    return ProgressBar(total=max(whole, 1), completed=part, width=BAR_WIDTH)


class _LinePrinter:
    """The live view for a log file: a line every two seconds, and one at each change of phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._phase = ""

    def show(self, run: Run) -> None:
        if run.now < self._next and run.phase == self._phase:
            return
        self._next, self._phase = run.now + LINE_EVERY, run.phase
        sessions = run.samples[-1].sessions if run.samples else 0
        self._console.print(
            f"  {run.now:4.0f} s  {run.phase:13}  sessions {sessions:3}  sign-ups {run.done:4} completed "
            f"{run.failed:4} failed  bystander {run.served:3} served {run.turned_away:3} failed",
            highlight=False,
            soft_wrap=True,
        )
