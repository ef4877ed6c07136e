"""The picture of `simulate`: who fails, who knocks, and what was lost once the server was back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from asyncdb_guard.errors import GuardError
from asyncdb_guard.fleet import Result, Scenario
from asyncdb_guard.fleet.results import BIN

_COLOURS = ("#1565c0", "#2e7d32", "#b00020", "#6a1b9a", "#ef6c00", "#00838f")
_SMOOTH = 5
"""Bins over which a curve is smoothed: half a second."""


def require(path: Path) -> None:
    """Raise GuardError where no picture can be drawn, before anything is simulated."""
    if importlib.util.find_spec("matplotlib") is None:
        raise GuardError("--png needs the package matplotlib. Install it: pip install matplotlib.")
    if not path.resolve().parent.is_dir():
        raise GuardError("--png names a directory that does not exist. Create it first.")


def draw(path: Path, results: dict[str, Result], scenario: Scenario, environments: int) -> None:
    """Write the picture, in the format that the file's name asks for."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (failing, knocking, lost) = plt.subplots(3, 1, figsize=(10, 11), height_ratios=(3, 3, 2))
    until = scenario.seconds + 20.0
    for number, (name, result) in enumerate(results.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        moments = [index * BIN for index in range(len(result.failed))]
        failed, requests = _smooth(result.failed), _smooth(result.requests)
        shares = [100 * one / max(every, 1e-9) for one, every in zip(failed, requests, strict=True)]
        failing.plot(moments, shares, color=colour, label=name)
        knocks = [one / result.runs / BIN / result.capacity for one in _smooth(result.attempts)]
        knocking.plot(moments, knocks, color=colour, label=name)
        lost.barh(name, result.failed_after, color=colour)
        lost.text(result.failed_after, number, f" {result.failed_after:,.0f}", va="center")
    for axis in (failing, knocking):
        axis.axvspan(0, scenario.seconds, color="0.9")
        axis.set(xlim=(0, until), xlabel="seconds since the outage began (grey: the server is away)")
        axis.legend()
    failing.set(ylim=(0, 105), ylabel="requests that fail, %", title=f"{environments:,} environments: {scenario.name}")
    knocking.axhline(1, color="black", linewidth=0.7, linestyle=":")
    knocking.set(ylim=(0, None), ylabel="connects ÷ what the server takes")
    lost.invert_yaxis()
    lost.margins(x=0.15)
    lost.set(xlabel="requests that failed although the server was back")
    figure.tight_layout()
    figure.savefig(str(path), dpi=110)  # pyright: ignore[reportUnknownMemberType]
    plt.close(figure)


def _smooth(values: list[float]) -> list[float]:
    padded = [0.0] * (_SMOOTH // 2) + values + [0.0] * (_SMOOTH // 2)
    return [sum(padded[index : index + _SMOOTH]) / _SMOOTH for index in range(len(values))]
