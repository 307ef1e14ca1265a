"""One row of the table: what, its goal, what came out, and whether the result was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is a ratio as `goal` says it; None where nothing was measured."""

    what: str
    goal: str
    value: float | None
    met: bool | None = None
    error: float | None = None  # against float64, relative
    allowed_error: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None  # why there is no result where there should be one

    @property
    def is_right(self) -> bool:
        return self.failure is None and (self.error is None or self.error <= self.allowed_error)

    def cells(self) -> list[str]:
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        if self.failure is not None:
            value = "FAILED"
        met = {None: "", True: "yes", False: "no"}[self.met]
        error = ""
        if self.error is not None:
            error = f"{self.error:.1e} of {self.allowed_error:.1e}" + ("" if self.is_right else " WRONG")
        detail = ", ".join(f"{k} {_short(v)}" for k, v in self.detail.items())
        return [self.what, self.goal, value, met, error, detail if self.failure is None else self.failure]


def reached(value: float | None, *, least: float | None = None, most: float | None = None) -> bool | None:
    """Is a goal reached? None where nothing was measured."""
    if value is None:
        return None
    return (least is None or value >= least) and (most is None or value <= most)


HEAD = "| what | goal | measured | reached | error | detail |\n|---|---|---|---|---|---|"


def line(row: Row) -> str:
    """A row of the table in Markdown."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in row.cells()) + " |"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    return "\n".join([HEAD, *map(line, rows)])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
