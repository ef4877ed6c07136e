"""The picture of all runs, side by side: sessions, the bystander's failures, and sign-up attempts that failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.burst.measurements import Run
from examples.burst.scenario import ASYNCPG_DEFAULT_POOL, PoolName

COLOURS: dict[PoolName, str] = {"plain": "#c2410c", "guarded": "#1d6fa5", "fleet": "#15803d"}
INK, PALE = "#333333", "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
}
ROWS = (
    "Sessions of the fleet on the server",
    "Failed requests of a bystander, in total",
    "Sign-up attempts that failed, each half second",
)
WINDOW = 0.5
"""Seconds of one bar."""


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the PNG: a column for each run. Its figures come from the runs."""
    scenario = runs[0].scenario
    people = scenario.processes * len(scenario.arrivals)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 9))
        grid: Any = figure.subplots(
            len(ROWS), len(runs), sharex=True, sharey="row", height_ratios=(3, 2, 2),
            gridspec_kw={"hspace": 0.42, "wspace": 0.1},
        )  # fmt: skip
        figure.subplots_adjust(left=0.05, right=0.98, top=0.79, bottom=0.065)
        figure.text(
            0.02, 0.95, f"One database with {scenario.max_connections} connections, one load of {people:,} sign-ups,"
            f" one outage: {len(runs)} fleets", fontsize=17, fontweight="bold",
        )  # fmt: skip
        for column, run in enumerate(runs):
            _head(grid[0][column], run)
            for row, draw_row in enumerate((_sessions, _bystander, _failures)):
                axes = grid[row][column]
                axes.axvspan(*run.outage, color="#e8e8e8", lw=0)
                axes.tick_params(length=0)
                if column == 0:
                    axes.set_title(ROWS[row], loc="left", fontsize=11)
                draw_row(axes, run, runs)
        grid[0][0].set_xlim(0, scenario.seconds)
        grid[0][0].set_xticks(range(0, int(scenario.seconds) + 1, 5 if scenario.seconds > 8 else 1))
        grid[-1][0].set_xlabel("seconds since the burst began", color=PALE, loc="left")
        figure.savefig(path, dpi=150)


def _head(axes: Axes, run: Run) -> None:
    """The name of a column."""
    scenario = run.scenario
    environments = scenario.environments(run.pool)
    name, what = {
        "plain": ("asyncpg.create_pool()", f"{environments} environments, {ASYNCPG_DEFAULT_POOL} sessions each"),
        "guarded": ("GuardedPool()", f"{environments} environments, one session each"),
        "fleet": (
            "GuardedPool(), role limit, fleet store",
            f"{environments} environments, one session each, {scenario.seats} seats",
        ),
    }[run.pool]
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(name, (0, 1), xytext=(0, 49), color=COLOURS[run.pool], fontsize=13, fontweight="bold", **place)
    axes.annotate(what, (0, 1), xytext=(0, 32), color=PALE, **place)


def _sessions(axes: Axes, run: Run, _: Sequence[Run]) -> None:
    scenario = run.scenario
    axes.axhline(scenario.max_connections, color=INK, lw=1, ls=(0, (4, 3)))
    axes.text(scenario.seconds, scenario.max_connections * 1.02, "max_connections", ha="right", va="bottom", fontsize=9)
    if run.pool == "fleet":
        axes.axhline(run.limit, color=COLOURS[run.pool], lw=1, ls=(0, (4, 3)))
        axes.text(scenario.seconds, run.limit * 1.01, f"role limit {run.limit}", ha="right", va="bottom",
                  color=COLOURS[run.pool], fontsize=9)  # fmt: skip
    axes.step([0, *(s.at for s in run.samples)], [0, *(s.sessions for s in run.samples)], where="post",
              color=COLOURS[run.pool], lw=1.4)  # fmt: skip
    number = f"{run.attempts:,}".replace(",", "{,}")
    axes.text(sum(run.outage) / 2, scenario.max_connections * 0.55,
              f"database\nis down\n\n$\\mathbf{{{number}}}$\nconnects\ntried", ha="center", va="center",
              fontsize=9, color=COLOURS[run.pool])  # fmt: skip
    axes.set_ylim(0, scenario.max_connections * 1.12)


def _bystander(axes: Axes, run: Run, runs: Sequence[Run]) -> None:
    times = [visit.at for visit in run.visits if visit.error is not None]
    axes.step([0, *times, run.scenario.seconds], [*range(len(times) + 1), len(times)], where="post",
              color=COLOURS[run.pool], lw=1.8, clip_on=False)  # fmt: skip
    axes.set_ylim(0, max(*(each.turned_away for each in runs), 4) * 1.15)
    _say(axes, run, f"{run.turned_away} of {len(run.visits)} failed")


def _failures(axes: Axes, run: Run, runs: Sequence[Run]) -> None:
    counts = [_counts(each) for each in runs]
    mine = _counts(run)
    axes.bar([(number + 0.5) * WINDOW for number in range(len(mine))], mine, width=WINDOW * 0.9,
             color=COLOURS[run.pool])  # fmt: skip
    axes.set_ylim(0, max(*(max(one, default=0) for one in counts), 4) * 1.6)
    late = f"the last one {run.last_failure:.1f} s after" if run.failed_after else "none after"
    _say(axes, run, f"{run.failed_after:,} after the outage,\n{late} its end")


def _counts(run: Run) -> list[int]:
    """Failed attempts of each window, until people stop to arrive."""
    counts = [0] * math.ceil(run.scenario.seconds / WINDOW)
    for moment in run.failures:
        if moment < run.scenario.seconds:
            counts[int(moment / WINDOW)] += 1
    return counts


def _say(axes: Axes, run: Run, text: str) -> None:
    axes.text(0.99, 0.97, text, transform=axes.transAxes, ha="right", va="top", color=COLOURS[run.pool],
              fontweight="bold")  # fmt: skip
