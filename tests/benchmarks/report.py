"""What a person reads: the table on a terminal and in Markdown; and the same as JSON."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.benchmarks.figures import Figure, Ratio, Spread


def table(figures: list[Figure]) -> Table:
    result = Table()
    result.add_column("")
    result.add_column("median", justify="right", no_wrap=True)
    result.add_column("ratio in the same round (quartiles)", no_wrap=True)
    result.add_column("bar", no_wrap=True)
    for measure, rows in itertools.groupby(figures, key=lambda figure: figure.measure):
        result.add_section()
        result.add_row(f"[bold]{measure}")
        for row in rows:
            bars = [_verdict(row.value.middle, row.bar)] if row.bar is not None else []
            bars += [_verdict(ratio.spread.middle, ratio.bar, at_least=ratio.at_least) for ratio in row.ratios]
            result.add_row(f"  {row.name}", value(row), "\n".join(map(_times, row.ratios)), "\n".join(bars))
    return result


def markdown(figures: list[Figure]) -> str:
    """The same, with the spread of the values themselves."""
    lines = ["| measure | | median (quartiles) | ratio in the same round (quartiles) | bar |", "|---|---|---|---|---|"]
    for row in figures:
        bars = [f"≤ {row.bar:g} {row.unit}".strip()] if row.bar is not None else []
        bars += [
            f"{_bar(ratio.bar, at_least=ratio.at_least)} × {ratio.of}" for ratio in row.ratios if ratio.bar is not None
        ]
        ratios = "<br>".join(map(_times, row.ratios))
        lines.append(
            f"| {row.measure} | {row.name} | {value(row)}{_range(row.value)} | {ratios} | {'<br>'.join(bars)} |"
        )
    return "\n".join(lines) + "\n"


def as_json(figures: list[Figure], about: dict[str, Any]) -> str:
    return json.dumps(about | {"figures": [asdict(figure) for figure in figures]}, indent=2, ensure_ascii=False) + "\n"


def value(figure: Figure) -> str:
    """The median with its unit."""
    return f"{number(figure.value.middle)} {figure.unit}".strip()


def number(amount: float) -> str:
    """Three digits or so."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.1f}" if amount >= 10 else f"{amount:.3g}"


def _times(ratio: Ratio) -> str:
    return f"{ratio.spread.middle:.2f}{_range(ratio.spread)} × {ratio.of}"


def _range(spread: Spread) -> str:
    return "" if spread.low == spread.high else f" ({number(spread.low)} to {number(spread.high)})"


def _verdict(amount: float, bar: float | None, *, at_least: bool = False) -> str:
    if bar is None:
        return ""
    text = _bar(bar, at_least=at_least)
    return f"[green]{text}[/]" if (amount >= bar if at_least else amount <= bar) else f"[red]{text} missed[/]"


def _bar(bar: float, *, at_least: bool) -> str:
    return f"{'≥' if at_least else '≤'} {bar:g}"
