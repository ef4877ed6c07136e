"""The picture of a run: a warm borrow near, far and alone, a service's load, a cold start, and a queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from tests.benchmarks import report
from tests.benchmarks.figures import Figure
from tests.benchmarks.lone import LONE_ROUND_TRIPS, LONE_TIME
from tests.benchmarks.processes import STAGES
from tests.benchmarks.service import P99, POOL_SIZE, TASKS, THROUGHPUT
from tests.benchmarks.waiters import FEW, QUEUE
from tests.benchmarks.warm import DISTANT_TIME, LOOPBACK_TIME, ROUND_TRIPS

OURS, OTHERS, LIMIT = "#1d6fa5", "#c9c9c9", "#7d8a94"
SHADES = ("#dddddd", "#a9c6dc", "#1d6fa5", "#0b3a5a")
INK, PALE = "#333333", "#777777"
_LONGEST = 0.43
"""How much of the width the longest bar takes."""

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.edgecolor": PALE,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "text.color": INK,
    "xtick.bottom": False,
    "xtick.labelbottom": False,
    "ytick.left": False,
    "ytick.color": INK,
}


def draw(figures: list[Figure], about: dict[str, Any], path: Path) -> None:
    """Write the PNG. Its words and figures are taken from the run."""
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(14, 11.6))
        (near, far), (lone, service), (cold, queue) = canvas.subplots(3, 2, height_ratios=(10, 4, 7))
        canvas.subplots_adjust(left=0.17, right=0.985, top=0.875, bottom=0.025, wspace=0.56, hspace=0.32)
        canvas.text(0.02, 0.962, "What a guarded connection costs", fontsize=18, fontweight="bold")
        versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("Python", "asyncpg", "PostgreSQL"))
        canvas.text(
            0.02, 0.935, "Medians of one run, everything in turns; ×: of a bare asyncpg connection. "
            f"{versions}. {about['date']}.", color=PALE,
        )  # fmt: skip
        _borrows(near, "One borrow with one statement, on loopback", _of(figures, LOOPBACK_TIME))
        _borrows(far, "The same, with the server 1 ms away", _of(figures, DISTANT_TIME), _trips(figures, ROUND_TRIPS))
        title = "The same, with a pause after each borrow"
        _borrows(lone, title, _of(figures, LONE_TIME), _trips(figures, LONE_ROUND_TRIPS))
        _service(service, _of(figures, THROUGHPUT), _of(figures, P99))
        _cold_start(cold, figures)
        _queue(queue, _of(figures, QUEUE))
        canvas.savefig(path, dpi=110)


def _of(figures: list[Figure], measure: str) -> list[Figure]:
    return [figure for figure in figures if figure.measure == measure]


def _borrows(axes: Axes, title: str, rows: list[Figure], trips: dict[str, str] | None = None) -> None:
    """Bars from the quickest to the slowest; whose connection is bare, and so the limit, is darker."""
    axes.set_title(title)
    rows = sorted(rows, key=lambda row: row.value.middle)
    colours = [OURS if "Guarded" in row.name else OTHERS if row.ratios else LIMIT for row in rows]
    axes.barh([row.name for row in rows], [row.value.middle for row in rows], color=colours, height=0.7)
    for place, row in enumerate(rows):
        said = report.value(row)
        if row.ratios:
            said += f"   {row.ratios[0].spread.middle:.2f} ×"
        if trips and row.name in trips:
            said += f"   {trips[row.name]} round trip" + ("" if trips[row.name] == "1" else "s")
        _beside(axes, place, row, said)
    _finish(axes)


def _trips(figures: list[Figure], measure: str) -> dict[str, str]:
    return {row.name: f"{row.value.middle:.3g}" for row in _of(figures, measure)}


def _service(axes: Axes, rows: list[Figure], p99: list[Figure]) -> None:
    axes.set_title(f"{TASKS} tasks on {POOL_SIZE} connections; ×: of {rows[0].name}")
    axes.barh([row.name for row in rows], [row.value.middle for row in rows], color=_colours(rows), height=0.7)
    for place, (row, slowest) in enumerate(zip(rows, p99, strict=True)):
        lines = [report.value(row), f"p99 {report.value(slowest)}"]
        if row.ratios:
            lines[0] += f"   {row.ratios[0].spread.middle:.2f} ×"
            lines[1] += f"   {slowest.ratios[0].spread.middle:.2f} ×"
        _beside(axes, place, row, "\n".join(lines))
    _finish(axes)


def _cold_start(axes: Axes, figures: list[Figure]) -> None:
    """One bar for each process, stage upon stage."""
    axes.set_title("Cold start to the first row, CPU", pad=34)
    names = [row.name for row in _of(figures, next(iter(STAGES.values())))]
    reached = dict.fromkeys(names, 0.0)
    for colour, measure in zip(SHADES, STAGES.values(), strict=True):
        rows = {row.name: row.value.middle for row in _of(figures, measure)}
        label = measure.removeprefix("Cold start: ").removesuffix(", CPU")
        axes.barh(names, [rows[name] for name in names], left=[reached[name] for name in names], color=colour,
                  height=0.6, label=label)  # fmt: skip
        reached = {name: reached[name] + rows[name] for name in names}
    for place, name in enumerate(names):
        axes.annotate(f"{report.number(reached[name])} ms", (reached[name], place), xytext=(6, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    _finish(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=4, frameon=False, handlelength=0.9,
                handletextpad=0.5, columnspacing=1, borderaxespad=0, fontsize=9)  # fmt: skip


def _queue(axes: Axes, rows: list[Figure]) -> None:
    axes.set_title("One borrow with one statement, in a queue")
    axes.barh([row.name for row in rows], [row.value.middle for row in rows], color=_colours(rows), height=0.7)
    for place, row in enumerate(rows):
        growth = f"   {row.ratios[0].spread.middle:.2f} × of {FEW}" if row.ratios else ""
        _beside(axes, place, row, report.value(row) + growth)
    _finish(axes)


def _colours(rows: list[Figure]) -> list[str]:
    return [OURS if "Guarded" in row.name else OTHERS for row in rows]


def _beside(axes: Axes, place: int, row: Figure, said: str) -> None:
    axes.annotate(said, (row.value.middle, place), xytext=(6, 0), textcoords="offset points", va="center",
                  annotation_clip=False, fontweight="bold" if "Guarded" in row.name else "normal")  # fmt: skip


def _finish(axes: Axes) -> None:
    """The first on top, room for the words beside the longest bar, and our own names in our own colour."""
    axes.invert_yaxis()
    axes.set_xlim(0, axes.dataLim.x1 / _LONGEST)
    for label in axes.get_yticklabels():
        if "Guarded" in label.get_text():
            label.set(color=OURS, fontweight="bold")
