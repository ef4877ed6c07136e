"""What a run measures: samples taken in turns, their middle and spread, and ratios between samples of one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Spread:
    """The median of some samples, and the quartiles around it."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high)


@dataclass(frozen=True)
class Ratio:
    """How many times `of` a figure is: the quotients of samples from the same round."""

    of: str
    spread: Spread
    bar: float | None = None
    """What it should not exceed; or, of a figure that is the better the higher it is, not fall below."""
    at_least: bool = False
    """Whether it is such a figure."""


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    measure: str
    name: str
    value: Spread
    unit: str
    ratios: tuple[Ratio, ...] = ()
    bar: float | None = None
    """What the value itself should not exceed."""


Samples = dict[str, list[float]]
"""By the contestant's name, one sample a round."""

Bars = dict[str, dict[str, float]]
"""By a contestant's name: whom it is compared with besides the first one, and the bar."""


def compare(
    measure: str, samples: Samples, unit: str, *, bars: Bars | None = None, at_least: bool = False
) -> list[Figure]:
    """A figure for each contestant, with its ratio to the first one and to whomever it has a bar for.

    `at_least`: the higher, the better, and a bar is what a ratio should not fall below.
    """
    first = next(iter(samples))
    bars = bars or {}
    return [
        Figure(
            measure,
            name,
            Spread.of(own),
            unit,
            tuple(
                Ratio(other, quotients(own, samples[other]), bars.get(name, {}).get(other), at_least)
                for other in dict.fromkeys((first, *bars.get(name, {})))
                if other != name and other in samples
            ),
        )
        for name, own in samples.items()
    ]


def quotients(own: Sequence[float], others: Sequence[float]) -> Spread:
    """Sample by sample, so that a busy moment of the machine meets both."""
    return Spread.of([one / other for one, other in zip(own, others, strict=True)])
