"""One system on one workload: seconds, counts of work, and whether it wrote what the full system wrote."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.paper.record import Recorded, RecordingRuntime
from benchmarks.paper.variants import Variant
from benchmarks.paper.workloads import Workload
from palmette.runtime.models.loaded import LoadedModel


@dataclass(slots=True)
class Row:
    """One run. A peer has no steps, latencies or optimum of its own."""

    workload: str
    system: str
    programs: int
    seconds: float
    latency: float | None  # median over the programs, in seconds from the start of its body to its end
    requests: int
    prompt_tokens: int
    computed_tokens: int  # of the prompts
    new_tokens: int  # generated or forced
    steps: int | None  # forward passes
    hit_rate: float
    share_of_optimum: float | None
    same: float  # share of its texts that are token for token those of the first run of the full system
    spread: list[float] = field(default_factory=list)  # seconds of every round

    @property
    def throughput(self) -> float:
        """Programs per second."""
        return self.programs / self.seconds


@dataclass(slots=True)
class Run:
    """A row with what a peer needs to do the same."""

    row: Row
    recorded: list[Recorded]
    outputs: dict[tuple[int, ...], tuple[int, ...]]


def run_variant(
    model: LoadedModel, workload: Workload, variant: Variant, options: Mapping[str, Any], expected: Run | None
) -> Run:
    """Run a workload once, on an engine made for it.

    Args:
        options: of the Runtime, for every variant.
        expected: a run whose texts this one is compared with.
    """
    pool = {} if workload.kv_tokens is None else {"kv_tokens": workload.kv_tokens}
    runtime = RecordingRuntime(model, measure_optimum=True, **{**pool, **options, **variant.options})
    with runtime:
        outcome = workload.run(runtime, one_at_a_time=variant.one_at_a_time)
        stats = runtime.stats()
        outputs = runtime.outputs()
    row = Row(
        workload=workload.name,
        system=variant.name,
        programs=len(workload.tasks),
        seconds=outcome.seconds,
        latency=statistics.median(outcome.latencies),
        requests=len(runtime.recorded),
        prompt_tokens=stats.prompt_tokens,
        computed_tokens=stats.computed_prompt_tokens,
        new_tokens=stats.sampled_tokens + stats.forced_tokens,
        steps=stats.steps,
        hit_rate=stats.hit_rate,
        share_of_optimum=stats.share_of_optimum,
        same=1.0 if expected is None else agreement(expected.outputs, outputs),
    )
    return Run(row, runtime.recorded, outputs)


def agreement(
    one: Mapping[tuple[int, ...], tuple[int, ...]], other: Mapping[tuple[int, ...], tuple[int, ...]]
) -> float:
    """The share of the first one's prompts behind which the other wrote the same."""
    return sum(other.get(prompt) == text for prompt, text in one.items()) / len(one) if one else 1.0


def median_of(rows: list[Row]) -> Row:
    """The last of several rounds, with the median of what a clock told."""
    row = rows[-1]
    row.spread = [r.seconds for r in rows]
    row.seconds = statistics.median(row.spread)
    latencies = [r.latency for r in rows if r.latency is not None]
    row.latency = statistics.median(latencies) if latencies else None
    row.same = min(r.same for r in rows)
    return row
