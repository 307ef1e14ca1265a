"""The paper's workloads, its ablations and peers: `python -m benchmarks.paper`.

    python -m benchmarks.paper [--workloads mmlu tree] [--variants full baseline] [--scale 1] [--rounds 1]
        [--peer transformers] [--peer llama_cpp=PYTHON] [--data FOLDER] [--option kv_tokens=4096] [--json out.json]

Each run has an engine of its own with an empty cache. In a round every system runs once, one after the other, and
rounds follow each other (A B C A B C ...); seconds are medians. Output lengths are fixed and all is greedy, so every
variant does the same work. Constraints are compiled in the time that is measured; loading is not.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.paper.measure import Row, Run, median_of, run_variant
from benchmarks.paper.peers import Peer, PeerMissing, make_peers
from benchmarks.paper.tables import summary_table, workload_table
from benchmarks.paper.variants import DEFAULT, FULL, VARIANTS
from benchmarks.paper.workloads import EXTRA, WORKLOADS, Workload
from palmette.runtime.models.load import load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_model


def measure(
    model: LoadedModel,
    workload: Workload,
    variants: Sequence[str],
    peers: Sequence[Peer],
    *,
    rounds: int,
    options: Mapping[str, Any],
) -> list[Row]:
    """Every system on one workload; the full one comes first, whether asked for or not."""
    rows: dict[str, list[Row]] = {}
    missing: set[str] = set()
    first: Run | None = None
    for _ in range(rounds):
        full = run_variant(model, workload, VARIANTS[FULL], options, first)
        first = first or full
        rows.setdefault(FULL, []).append(full.row)
        for name in variants:
            variant = VARIANTS[name]
            if name != FULL and variant.applies_to(is_constrained=workload.is_constrained):
                rows.setdefault(name, []).append(run_variant(model, workload, variant, options, first).row)
        for peer in peers:
            if peer.name in missing:
                continue
            try:
                rows.setdefault(peer.name, []).append(peer.run(full))
            except PeerMissing as error:
                print(f"{workload.name}: {peer.name} is left out: {error}", flush=True)
                missing.add(peer.name)
                rows.pop(peer.name, None)
    return [median_of(found) for found in rows.values()]


def load(name: str, dtype: str | None) -> LoadedModel:
    """The model; "tiny" is the random one of the tests, with room for long prompts of bytes."""
    if name == "tiny":
        return tiny_model(context_len=1 << 16)
    return load_model(name, dtype=dtype or "auto", cpu_kernels="auto")


def warm_up(model: LoadedModel, options: Mapping[str, Any]) -> None:
    """Once before the clock: threads, lazy imports, first touches."""
    for make in (WORKLOADS["json"], WORKLOADS["judge"]):
        run_variant(model, make(0.01, None), VARIANTS[FULL], options, None)


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` as options of a Runtime: JSON where it is some, else text."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS, *EXTRA], default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(DEFAULT), metavar="NAME")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of programs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", action="append", default=[], help="transformers, or llama_cpp=PYTHON; repeatable")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", help="of the weights, as the Runtime takes it")
    parser.add_argument("--data", type=Path, help="a folder with the original files; see benchmarks.paper.originals")
    parser.add_argument(
        "--option", action="append", default=[], help="an option of the Runtime, NAME=VALUE; repeatable"
    )
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    args = parser.parse_args(argv)
    model, options = load(args.model, args.dtype), parse_options(args.option)
    try:
        peers = make_peers(args.peer, model)
    except ValueError as error:
        parser.error(str(error))
    warm_up(model, options)
    found: dict[str, list[Row]] = {}
    for name in args.workloads:
        workload = {**WORKLOADS, **EXTRA}[name](args.scale, args.data)
        found[name] = measure(model, workload, args.variants, peers, rounds=args.rounds, options=options)
        print(workload_table(workload.title, found[name]), flush=True)
        if args.json:
            about = {
                "scale": args.scale,
                "rounds": args.rounds,
                "model": model.name,
                "python": platform.python_version(),
            }
            rows = [{**asdict(row), "throughput": row.throughput} for rows in found.values() for row in rows]
            args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(summary_table(found))


if __name__ == "__main__":
    main()
