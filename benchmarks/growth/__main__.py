"""Does cost grow as it may? Exponents fitted over sizes, next to the ones claimed.

    python -m benchmarks.growth [--laws streams forks ...] [--quick] [--json out.json] [--plot out.svg]

A row is one cost at five sizes or more: lines of this package that ran, tokens, bytes, threads, forward passes, or
processor time; medians where it is time. Its exponent is the slope of log(cost) over log(size), with half of its 95 %
confidence interval, and the tail's over the three largest sizes alone. A claim is an upper bound: "within" 0.1 of it,
"below" it by more, or ABOVE it, and then the place that makes it so. For what is counted the tail must keep the claim
too, since nothing there is noise.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.growth import cached_tokens, decoding, forks, programs, schemas, streams
from benchmarks.growth.law import Row, Verdict
from benchmarks.growth.plot import draw

NOT_BUILT = "replicas: routing O(prefix), state summaries bounded -- not measured: there is no router yet"


class _Rows(Protocol):
    def __call__(self, *, quick: bool = False) -> list[Row]: ...


LAWS: dict[str, _Rows] = {
    "cached_tokens": cached_tokens.rows,
    "programs": programs.rows,
    "streams": streams.rows,
    "forks": forks.rows,
    "schemas": schemas.rows,
    "decoding": decoding.rows,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--laws", nargs="+", choices=list(LAWS), default=list(LAWS), help="only these")
    parser.add_argument("--quick", action="store_true", help="few and small sizes: to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--plot", type=Path, help="draw them, as .svg or .png; needs matplotlib")
    options = parser.parse_args(arguments)
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")

    rows: list[Row] = []
    seconds: dict[str, float] = {}
    print(HEADER)
    for name in options.laws:
        began = time.perf_counter()
        found = LAWS[name](quick=options.quick)
        rows += found
        for row in found:
            print(line(row), flush=True)
        seconds[name] = time.perf_counter() - began
    print(f"{NOT_BUILT}\n\n{summary(rows)}\n")
    print("seconds: " + ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(figures(rows), indent=2) + "\n")
    if options.plot is not None:
        draw(rows, options.plot)


_WIDTHS = "{:<18} {:<42} {:<23} {:>10} {:>7} {:>15} {:>6} {:>6}  {}"
HEADER = _WIDTHS.format("law", "cost", "grows with", "unit", "claimed", "fitted", "tail", "R^2", "verdict")


def line(row: Row) -> str:
    """One row of the table."""
    fitted = f"{row.fit.exponent:.2f} +- {row.fit.error:.2f}"
    cells = (f"{row.claimed:.0f}", fitted, f"{row.tail:.2f}", f"{row.fit.r2:.3f}", row.verdict.value)
    text = _WIDTHS.format(row.law, row.what, row.over, row.unit, *cells)
    return f"{text}  ({row.extra})" if row.extra else text


def summary(rows: Sequence[Row]) -> str:
    """How many claims hold, and what breaks the others."""
    broken = [row for row in rows if row.verdict is Verdict.ABOVE]
    found = [f"{len(rows) - len(broken)} of {len(rows)} rows keep their claim."]
    reasons: dict[str, list[Row]] = {}
    for row in broken:
        reasons.setdefault(row.why or "not explained", []).append(row)
    for why, rows_of in reasons.items():
        found += [*(f"ABOVE  {row.law}: {row.what}, by {row.over} ({row.unit})" for row in rows_of), f"       {why}"]
    return "\n".join(found)


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "rows": [
            {
                "law": row.law,
                "cost": row.what,
                "over": row.over,
                "unit": row.unit,
                "counted": row.is_counted,
                "claimed": row.claimed,
                "exponent": row.fit.exponent,
                "error": row.fit.error,
                "tail": row.tail,
                "r2": row.fit.r2,
                "verdict": row.verdict.value,
                "sizes": row.sizes,
                "costs": row.costs,
                "why": row.why if row.verdict is Verdict.ABOVE else "",
                "extra": row.extra,
            }
            for row in rows
        ],
        "not_measured": [NOT_BUILT],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # with more, they would wait for each other in the tiny model's products
    gc.freeze()  # what is loaded stays: no collection needs to look at it
    main()
