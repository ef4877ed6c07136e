"""What a person reads: the live view of a run, the table of both, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.burst.measurements import Run, shown
from examples.burst.scenario import PoolName

NAMES: dict[PoolName, str] = {"plain": "asyncpg.create_pool()", "guarded": "GuardedPool()"}
LINE_EVERY = 2.0
BAR_WIDTH = 30

Show = Callable[[Run], None]


@contextmanager
def progress(console: Console) -> Generator[Show, None, None]:
    """A function that shows a run as it goes: bars on a terminal, a line every two seconds elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            yield lambda run: live.update(_bars(run))
    else:
        printer = _LinePrinter(console)
        yield printer.show


def table(plain: Run, guarded: Run) -> Table:
    """Both runs side by side."""
    rows: list[tuple[str, Callable[[Run], str]]] = [
        (f"Fleet's sessions at peak, of {plain.scenario.max_connections}", lambda run: f"{run.peak}"),
        ("Bystander turned away", lambda run: f"{run.turned_away:,}"),
        ("Bystander served", lambda run: f"{run.served:,}"),
        ("Sign-ups done before the outage", lambda run: f"{run.done_before_outage:,}"),
        ("Sign-ups done in all", lambda run: f"{run.done:,}"),
        ("Sign-ups failed", lambda run: f"{run.failed:,}"),
        ("Sign-up time, p50", lambda run: f"{run.percentile(50) * 1000:,.0f} ms"),
        ("Sign-up time, p99", lambda run: f"{run.percentile(99) * 1000:,.0f} ms"),
        ("Connection attempts while down", lambda run: f"{run.attempts:,}"),
    ]
    result = Table()
    result.add_column("")
    result.add_column(NAMES["plain"], justify="right", style="red")
    result.add_column(NAMES["guarded"], justify="right", style="green")
    for name, figure in rows:
        result.add_row(name, figure(plain), figure(guarded))
    return result


def meaning(plain: Run, guarded: Run) -> str:
    """One sentence for the end, or what this run failed to show."""
    if not shown(plain, guarded):
        return (
            "This run did not show what it should: the plain fleet locks the bystander out, "
            "the guarded one never does, does more sign-ups, and leaves a database that is down alone."
        )
    return (
        f"What it means: {plain.scenario.processes} processes with a silent default of ten connections each "
        "lock out every client of the database, and beat on it while it is down; "
        "bounded to one connection each, behind a breaker, the same processes serve more people "
        "and nobody else notices them."
    )


def _bars(run: Run) -> Padding:
    """The live view: one line a figure."""
    scenario = run.scenario
    people = scenario.processes * len(scenario.arrivals)
    sessions = run.samples[-1].sessions if run.samples else 0
    grid = Table.grid(padding=(0, 2))
    grid.add_row(NAMES[run.pool], f"{max(run.now, 0):.0f} s", run.phase)
    grid.add_row("sessions", _bar(sessions, scenario.max_connections), f"{sessions} of {scenario.max_connections}")
    grid.add_row("sign-ups", _bar(len(run.sign_ups), people), f"{run.done} done, {run.failed} failed, of {people}")
    grid.add_row("bystander", _bar(run.served, len(run.visits)), f"{run.served} served, {run.turned_away} turned away")
    grid.add_row("attempts while down", "", f"{run.attempts}")
    return Padding(grid, (0, 0, 0, 2))


def _bar(part: int, whole: int) -> ProgressBar:
    return ProgressBar(total=max(whole, 1), completed=part, width=BAR_WIDTH)


class _LinePrinter:
    """The live view for a log file: a line now and then, and one at each change of phase."""

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
            f"  {run.now:4.0f} s  {run.phase:15}  sessions {sessions:3}  sign-ups {run.done:4} done {run.failed:4} "
            f"failed  bystander {run.served:3} served {run.turned_away:3} turned away",
            highlight=False,
            soft_wrap=True,
        )
