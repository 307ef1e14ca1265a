"""A row of the table: a cost at several sizes, the exponent that fits it, and whether that is the one claimed.

Knows numbers. Does not know what was measured, nor how.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

TOLERANCE = 0.1  # of an exponent
TAIL = 3  # the largest sizes, where a quadratic part shows that the small ones hide
# Two-sided 95 % quantiles of Student's t by degrees of freedom, beyond which the last is near enough.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Verdict(Enum):
    """Claims are upper bounds: a cost that grows more slowly than claimed keeps them."""

    WITHIN = "within"
    BELOW = "below"
    ABOVE = "ABOVE"


@dataclass(frozen=True, slots=True)
class Fit:
    """cost = constant x size ** exponent, by least squares over the logarithms."""

    exponent: float
    error: float  # half of the exponent's 95 % confidence interval; infinite with two points
    r2: float  # 1.0 for a cost that does not change at all
    spread: float  # the largest factor between the line and a point


@dataclass(frozen=True)
class Row:
    """One cost. Everything but CPU time is counted: the same on any machine, but for some lines where threads meet."""

    law: str
    what: str
    over: str  # what grows
    unit: str
    claimed: float
    sizes: tuple[int, ...]
    costs: tuple[float, ...]
    why: str = ""  # what makes it so, where it is above its claim
    extra: str = ""  # a figure worth knowing beside the exponent

    @property
    def is_counted(self) -> bool:
        return not self.unit.startswith("CPU")

    @cached_property
    def fit(self) -> Fit:
        return fit(self.sizes, self.costs)

    @cached_property
    def tail(self) -> float:
        """The exponent over the largest sizes alone."""
        return fit(self.sizes[-TAIL:], self.costs[-TAIL:]).exponent

    @property
    def verdict(self) -> Verdict:
        """By the fit. What is counted has no noise, so there the tail counts too."""
        highest = max(self.fit.exponent, self.tail) if self.is_counted else self.fit.exponent
        if highest > self.claimed + TOLERANCE:
            return Verdict.ABOVE
        return Verdict.BELOW if self.fit.exponent < self.claimed - TOLERANCE else Verdict.WITHIN


def fit(sizes: Sequence[int], costs: Sequence[float]) -> Fit:
    """Fit a power law.

    Raises:
        ValueError: fewer than two sizes, or a cost that is not above 0.
    """
    if len(sizes) < 2 or len(set(sizes)) < len(sizes):
        raise ValueError(f"a fit needs two sizes or more, all different: {sizes}")
    if min(costs) <= 0:
        raise ValueError(f"a cost that is not above 0 has no logarithm: {costs}")
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    across = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / across
    misses = [y - mean_y - slope * (x - mean_x) for x, y in zip(xs, ys, strict=True)]
    missed, varied = sum(m * m for m in misses), sum((y - mean_y) ** 2 for y in ys)
    free = len(sizes) - 2
    error = _T95[min(free, len(_T95)) - 1] * math.sqrt(missed / free / across) if free else math.inf
    r2 = 1.0 - missed / varied if varied > 1e-18 else 1.0
    return Fit(slope, error, r2, math.exp(max(map(abs, misses))))


def geometric(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    """first, first x factor, ... up to `last`."""
    sizes = [first]
    while sizes[-1] * factor <= last:
        sizes.append(sizes[-1] * factor)
    return tuple(sizes)
