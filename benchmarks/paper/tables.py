"""Rows as text: a table for each workload, and one over all of them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.paper.measure import Row
from benchmarks.paper.variants import BASELINE, FULL, VARIANTS


def workload_table(title: str, rows: Sequence[Row]) -> str:
    """Every system on one workload; the first row is the full system."""
    base = rows[0].seconds
    first = rows[0]
    lines = [f"\n{title}: {first.programs} programs, {first.requests} requests, {first.new_tokens} new tokens"]
    columns = f"{'s':>8}{'x full':>8}{'prog/s':>8}{'p50 s':>8}{'computed':>10}{'hit':>8}{'optimum':>9}{'steps':>7}"
    lines.append(f"  {'system':<20}{columns}{'same':>7}")
    for r in rows:
        latency = "-" if r.latency is None else f"{r.latency:.2f}"
        optimum = "-" if r.share_of_optimum is None else f"{r.share_of_optimum:.1%}"
        steps = "-" if r.steps is None else str(r.steps)
        same = f"{r.same:.0%}" if r.system in VARIANTS else "-"
        lines.append(
            f"  {r.system:<20}{r.seconds:>8.2f}{r.seconds / base:>8.2f}{r.throughput:>8.2f}{latency:>8}"
            f"{r.computed_tokens:>10}{r.hit_rate:>8.1%}{optimum:>9}{steps:>7}{same:>7}"
        )
    return "\n".join(lines)


def summary_table(by_workload: dict[str, list[Row]]) -> str:
    """Seconds over the full system's, workloads by systems, with the best peer of each."""
    systems = list(dict.fromkeys(row.system for rows in by_workload.values() for row in rows if row.system != FULL))
    head = f"  {'workload':<12}{'optimum':>9}" + "".join(f"{name:>20}" for name in systems)
    lines = ["\nseconds over those of the full system, and its share of the optimal hit rate:", head]
    for name, rows in by_workload.items():
        share = rows[0].share_of_optimum
        found = {row.system: f"{row.seconds / rows[0].seconds:.2f}" for row in rows}
        cells = "".join(f"{found.get(system, '-'):>20}" for system in systems)
        lines.append(f"  {name:<12}{'-' if share is None else f'{share:.1%}':>9}{cells}")
    return "\n".join([*lines, "", *verdicts(by_workload)])


def verdicts(by_workload: dict[str, list[Row]]) -> list[str]:
    """What the figures add up to, one line for each bar."""
    baseline = {name: ratio for name, rows in by_workload.items() if (ratio := _times(rows, {BASELINE})) is not None}
    peers = {row.system for rows in by_workload.values() for row in rows} - set(VARIANTS)
    best = {name: ratio for name, rows in by_workload.items() if (ratio := _times(rows, peers)) is not None}
    shares = [rows[0].share_of_optimum for rows in by_workload.values()]
    known = [share for share in shares if share is not None]
    lines = []
    if baseline:
        lines.append(
            f"  against the baseline: >= 3x on {sum(r >= 3 for r in baseline.values())} of {len(baseline)}, "
            f"least {min(baseline.values()):.2f}x ({min(baseline, key=lambda n: baseline[n])})"
        )
    if known:
        lines.append(f"  share of the optimal hit rate: least {min(known):.1%}")
    if best:
        lines.append(
            f"  against the best peer: >= 2x on {sum(r >= 2 for r in best.values())} of {len(best)}, "
            f"least {min(best.values()):.2f}x ({min(best, key=lambda n: best[n])})"
        )
    return lines


def _times(rows: Sequence[Row], systems: set[str]) -> float | None:
    """The fastest of `systems`, in seconds over the full system's; None if none of them ran."""
    found = [row.seconds for row in rows if row.system in systems]
    return min(found) / rows[0].seconds if found else None
