"""One row of the table: what, its goal, what came out, and whether the result was right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
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

    @property
    def is_right(self) -> bool:
        return self.error is None or self.error <= self.allowed_error

    def cells(self) -> list[str]:
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        met = {None: "", True: "yes", False: "no"}[self.met]
        error = "" if self.error is None else f"{self.error:.1e}" + ("" if self.is_right else " WRONG")
        detail = ", ".join(f"{k} {_short(v)}" for k, v in self.detail.items())
        return [self.what, self.goal, value, met, error, detail]


def reached(value: float | None, *, least: float | None = None, most: float | None = None) -> bool | None:
    """Is a goal reached? None where nothing was measured."""
    if value is None:
        return None
    return (least is None or value >= least) and (most is None or value <= most)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | goal | measured | reached | error | detail |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in rows)])


def write(file: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    file.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
