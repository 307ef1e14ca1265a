"""The rows as a picture: a panel a law, each cost relative to its first, on logarithmic axes.

Knows matplotlib, an optional dependency that nothing else here needs: it is loaded when something is drawn.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.law import Row, Verdict

_ABOVE, _WITHIN = "#b3261e", "#1f5f8b"


def draw(rows: Sequence[Row], out: Path) -> None:
    """Write the picture; its format follows from the name."""
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    laws = list(dict.fromkeys(row.law for row in rows))
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same rows, the same file
    figure = figures.Figure(figsize=(12, 4 * -(-len(laws) // 3)), layout="constrained")
    panels = iter(figure.subplots(-(-len(laws) // 3), 3, squeeze=False).flat)
    for law, panel in zip(laws, panels, strict=False):
        panel.set_title(law, fontsize=11)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("size, relative to the smallest", fontsize=8)
        panel.set_ylabel("cost, relative to its first", fontsize=8)
        mine = [row for row in rows if row.law == law]
        last = max(row.sizes[-1] / row.sizes[0] for row in mine)
        for exponent in (0, 1, 2):
            panel.plot([1, last], [1, last**exponent], color="#999999", linewidth=0.6, linestyle=":")
        panel.set_ylim(0.3, 3 * max(max(row.costs) / row.costs[0] for row in mine))
        for row in mine:
            is_above = row.verdict is Verdict.ABOVE
            panel.plot(
                [size / row.sizes[0] for size in row.sizes],
                [cost / row.costs[0] for cost in row.costs],
                color=_ABOVE if is_above else _WITHIN,
                linestyle="-" if row.is_counted else "--",
                marker="o",
                markersize=2.5,
                linewidth=1.0,
                label=f"{row.what} / {row.over} ({row.unit})" if is_above else None,
            )
        if any(row.verdict is Verdict.ABOVE for row in mine):
            panel.legend(fontsize=5.5, loc="upper left", frameon=False)
    for panel in panels:  # what is left of the grid
        panel.axis("off")
    figure.suptitle("Growth of cost: solid = counted, dashed = time, red = above its claim, dotted = slopes 0, 1, 2")
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
