"""The example programs on the embedded model: the full system, its ablations, and transformers beside it, in one run.

    python -m benchmarks.programs [--scale 8] [--rounds 3] [--model smollm2] [--json out.json] [--no-peer]

Ablations as in the SGLang paper (arXiv 2312.07104, section 6.3). The peer is `transformers.generate` in fp32, one
request after the other, with its own KV reuse: it keeps the cache of its last request and drops what differs. Every
system answers the same requests, greedily; the peer generates as many tokens as ours did. Seconds are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer import TransformersPeer
from benchmarks.workload import Workload, workloads
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.models.load import load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.types import Deliver, Event, Request, TokenEvent

SYSTEMS: dict[str, dict[str, Any]] = {
    "full": {},
    "no cache": {"enabled": False},
    "FCFS": {"policy": "fcfs"},
    "random order": {"policy": "random"},
    "no fork hints": {"hints": False},
    "one at a time": {"max_running": 1},
}


@dataclass(slots=True)
class Row:
    """One system on one workload. Token counts are of one round."""

    workload: str
    system: str
    seconds: float
    prompt_tokens: int
    computed_tokens: int
    sampled_tokens: int
    hit_rate: float
    share_of_optimum: float | None
    same_output: bool
    times_full: float = 1.0  # seconds of this system over seconds of the full one


class RecordingRuntime(Runtime):
    """A Runtime that remembers its requests and how many tokens each sampled, to give a peer the same work."""

    def __init__(self, model: LoadedModel, **options: Any) -> None:
        self.requests: list[Request] = []
        self.sampled: dict[str, int] = {}
        super().__init__(model, **options)

    def submit(self, request: Request, deliver: Deliver) -> None:
        self.requests.append(request)

        def counted(events: Sequence[Event]) -> None:
            for event in events:
                if isinstance(event, TokenEvent):
                    self.sampled[event.request_id] = self.sampled.get(event.request_id, 0) + len(event.token_ids)
            deliver(events)

        super().submit(request, counted)


def measure(loaded: LoadedModel, scale: int, rounds: int, peer: TransformersPeer | None) -> list[Row]:
    """Every system on every workload, `rounds` times in turn (A B C A B C ...)."""
    rows: list[Row] = []
    for work in workloads(scale):
        seconds: dict[str, list[float]] = {name: [] for name in (*SYSTEMS, *(["transformers"] if peer else []))}
        last: dict[str, Row] = {}
        texts: list[str] = []
        for _ in range(rounds):
            for name, options in SYSTEMS.items():
                row, requests, sampled, output = _run(loaded, work, name, options)
                texts = texts or output
                row.same_output = output == texts
                seconds[name].append(row.seconds)
                last[name] = row
                if name == "full" and peer is not None:
                    took, computed = peer.run(requests, sampled)
                    seconds["transformers"].append(took)
                    last["transformers"] = Row(
                        work.name, "transformers", took, row.prompt_tokens, computed, row.sampled_tokens,
                        1 - computed / row.prompt_tokens, None, True,
                    )  # fmt: skip
        base = statistics.median(seconds["full"])
        for name, row in last.items():
            row.seconds = statistics.median(seconds[name])
            row.times_full = row.seconds / base
            rows.append(row)
        print_rows([r for r in rows if r.workload == work.name])
    return rows


def _run(
    loaded: LoadedModel, work: Workload, name: str, options: dict[str, Any]
) -> tuple[Row, list[Request], dict[str, int], list[str]]:
    runtime = RecordingRuntime(loaded, measure_optimum=True, **options)
    with runtime:
        start = time.perf_counter()
        states = work.run(runtime)
        seconds = time.perf_counter() - start
        stats = runtime.stats()
        row = Row(
            work.name, name, seconds, stats.prompt_tokens, stats.computed_prompt_tokens, stats.sampled_tokens,
            stats.hit_rate, stats.share_of_optimum, True,
        )  # fmt: skip
        return row, runtime.requests, runtime.sampled, [state.text() for state in states]


def print_rows(rows: list[Row]) -> None:
    print(f"\n{rows[0].workload}")
    columns = f"{'prompt':>7} {'computed':>8} {'hit':>6} {'optimum':>8} {'sampled':>8} {'s':>7} {'x full':>7}"
    print(f"  {'system':<15} {columns}  output")
    for r in rows:
        optimum = "-" if r.share_of_optimum is None else f"{r.share_of_optimum:.1%}"
        print(
            f"  {r.system:<15} {r.prompt_tokens:>7} {r.computed_tokens:>8} {r.hit_rate:>6.1%} {optimum:>8} "
            f"{r.sampled_tokens:>8} {r.seconds:>7.2f} {r.times_full:>6.2f}x  {'same' if r.same_output else 'ties'}"
        )


def summary(rows: list[Row]) -> dict[str, float]:
    """Total seconds of each system over those of the full one."""
    totals: dict[str, float] = {}
    for row in rows:
        totals[row.system] = totals.get(row.system, 0.0) + row.seconds
    return {name: seconds / totals["full"] for name, seconds in totals.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args(argv)
    loaded = load_model(args.model, dtype="auto", cpu_kernels="auto")
    peer = None if args.no_peer else TransformersPeer(loaded)
    rows = measure(loaded, args.scale, args.rounds, peer)
    print("\nall programs, seconds over the full system's:")
    for name, ratio in summary(rows).items():
        print(f"  {name:<15} {ratio:>6.2f}x")
    if args.json:
        args.json.write_text(json.dumps({"rows": [asdict(r) for r in rows], "summary": summary(rows)}, indent=1))


if __name__ == "__main__":
    main()
