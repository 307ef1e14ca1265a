"""The ablations as a picture: `python -m benchmarks.paper.plots results.json ablations.svg`.

Reads what `python -m benchmarks.paper --json` wrote. One group of bars a workload, each bar the throughput of a system
over that of the full one; the line at 1 is the full system. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.variants import FULL


def normalised(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Throughput over the full system's, by workload and system."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["workload"], {})[row["system"]] = float(row["throughput"])
    return {name: {s: value / systems[FULL] for s, value in systems.items()} for name, systems in found.items()}


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the picture; its kind is that of the file's name."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "palmette"  # the same figures give the same file
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    groups = normalised(rows)
    systems = list(dict.fromkeys(system for values in groups.values() for system in values))
    width = 0.86 / len(systems)
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.25 * len(groups), 4))
    for i, system in enumerate(systems):
        places = [place for place, values in enumerate(groups.values()) if system in values]
        heights = [values[system] for values in groups.values() if system in values]
        offset = (i - (len(systems) - 1) / 2) * width
        color = "black" if system == FULL else f"C{(i - 1) % 10}"
        axes.bar([place + offset for place in places], heights, width, label=system, color=color)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
    axes.set_ylabel("throughput, full system = 1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper.plots", description="Draw the ablations.")
    parser.add_argument("results", type=Path, help="the file that --json wrote")
    parser.add_argument("picture", type=Path, help="where to write, such as ablations.svg")
    args = parser.parse_args(argv)
    draw(json.loads(args.results.read_text(encoding="utf-8"))["rows"], args.picture)


if __name__ == "__main__":
    main()
