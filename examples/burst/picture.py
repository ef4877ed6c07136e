"""The picture of both runs: sessions over time at the top, the bystander's failures below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.burst.measurements import Run
from examples.burst.scenario import ASYNCPG_DEFAULT_POOL, RESERVED_FOR_SUPERUSERS, PoolName

COLOURS: dict[PoolName, str] = {"plain": "#c2410c", "guarded": "#1d6fa5"}
INK, PALE = "#333333", "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
}


def draw(plain: Run, guarded: Run, path: Path) -> None:
    """Write the PNG. Its figures come from the two runs."""
    scenario = plain.scenario
    down, back = min(plain.outage[0], guarded.outage[0]), max(plain.outage[1], guarded.outage[1])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 7.6))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2), gridspec_kw={"hspace": 0.3})
        figure.subplots_adjust(left=0.065, right=0.78, top=0.82, bottom=0.08)
        figure.text(
            0.02, 0.945, f"{scenario.processes} processes fill a database, unless each is limited to one session",
            fontsize=17, fontweight="bold",
        )  # fmt: skip
        figure.text(
            0.02, 0.9,
            f"Two runs of the same load, {scenario.processes * len(scenario.arrivals):,} sign-ups each. "
            f"asyncpg.create_pool() opens {ASYNCPG_DEFAULT_POOL} sessions per process by default, GuardedPool() one.",
            color=PALE,
        )  # fmt: skip
        for axes in (above, below):
            axes.axvspan(down, back, color="#e8e8e8", lw=0)
            axes.tick_params(length=0)
        _sessions(above, plain, guarded)
        _outage(above, (down + back) / 2, plain, guarded)
        _failures(below, plain, guarded)
        below.set_xlabel("seconds since the burst began", color=PALE, loc="left")
        figure.savefig(path, dpi=150)


def _sessions(axes: Axes, plain: Run, guarded: Run) -> None:
    limit = plain.scenario.max_connections
    axes.set_title("Sessions of the fleet on the server", loc="left", fontsize=12)
    axes.axhline(limit, color=INK, lw=1, ls=(0, (4, 3)))
    limits = f"max_connections = {limit}, {RESERVED_FOR_SUPERUSERS} of them reserved for superusers"
    axes.text(0, limit * 1.02, limits, va="bottom")
    for run in (plain, guarded):
        axes.step([0, *(s.at for s in run.samples)], [0, *(s.sessions for s in run.samples)], where="post",
                  color=COLOURS[run.pool], lw=1.6)  # fmt: skip
    _label(axes, plain, plain.peak, f"asyncpg.create_pool()\nat most {plain.peak} sessions:\nthe server is full")
    _label(axes, guarded, guarded.peak, f"GuardedPool()\nat most {guarded.peak} sessions")
    axes.set_ylim(0, limit * 1.12)
    axes.set_xlim(0, plain.scenario.seconds)


def _outage(axes: Axes, middle: float, plain: Run, guarded: Run) -> None:
    """The connection attempts during the outage, and how the guarded fleet recovers."""
    limit = plain.scenario.max_connections
    lines = (
        (0.69, "database\nis down", PALE, "normal"),
        (0.54, "connection\nattempts:", PALE, "normal"),
        (0.44, f"{plain.attempts:,}", COLOURS["plain"], "bold"),
        (0.38, f"{guarded.attempts:,}", COLOURS["guarded"], "bold"),
    )
    for height, text, colour, weight in lines:
        axes.text(middle, limit * height, text, ha="center", va="center", color=colour, fontweight=weight, fontsize=10)
    axes.text(0.985, 0.05, "each breaker admits\none trial, each\nat its own time", transform=axes.transAxes,
              ha="right", va="bottom", color=COLOURS["guarded"], fontsize=10)  # fmt: skip


def _failures(axes: Axes, plain: Run, guarded: Run) -> None:
    axes.set_title("Failed requests of a bystander, another client of the same server, in total",
                   loc="left", fontsize=12)  # fmt: skip
    for run in (plain, guarded):
        times = [visit.at for visit in run.visits if visit.error is not None]
        axes.step([0, *times, run.scenario.seconds], [*range(len(times) + 1), len(times)], where="post",
                  color=COLOURS[run.pool], lw=1.8, clip_on=False)  # fmt: skip
        tries = len(run.visits)
        _label(axes, run, run.turned_away, f"{run.turned_away} of {tries}\nrequests failed")
    axes.set_ylim(0, max(plain.turned_away, 4) * 1.08)


def _label(axes: Axes, run: Run, height: float, text: str) -> None:
    """Label the right end of a line, in its colour."""
    axes.annotate(text, (1, height), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
                  va="center", color=COLOURS[run.pool], fontweight="bold", annotation_clip=False)  # fmt: skip
