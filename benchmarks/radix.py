"""What the prefix tree costs: microseconds per match, insert and evict while it grows, and its share of a real run.

    python -m benchmarks.radix [--sizes 100 10000 1000000] [--model smollm2] [--json out.json]

A path is 256 tokens: half of it shared with 15 others, half its own. Times are medians over many operations in one
tree of the given size; the exponent fitted over the sizes says how a cost grows with the tree (0 = not at all). The
run asks for prompts that share nothing, so that the tree can only cost: its goal is below 1 % of the time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palmette.runtime.config import CacheConfig, RuntimeConfig
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.load import load_model
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.radix_cache import RadixCache
from palmette.runtime.radix_node import TOKEN_CODE
from palmette.types import GenerateRequest, SamplingParams

PATH, SHARED, SIBLINGS = 256, 128, 16
OPERATIONS = 300
TIMED = ("root", "match_prefix", "probe", "try_insert_child", "insert", "lock_ref", "unlock_ref", "evict", "prove")


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds per operation on paths of PATH tokens."""

    cached_tokens: int
    match: float
    insert: float
    evict: float  # of one path's own half


@dataclass(frozen=True, slots=True)
class Share:
    """The tree's part of a run without any reuse."""

    model: str
    requests: int
    prompt_tokens: int
    seconds: float
    tree_seconds: float

    @property
    def percent(self) -> float:
        return 100.0 * self.tree_seconds / self.seconds


def costs(size: int, seed: int = 0) -> Costs:
    """Grow a tree to `size` tokens, then measure."""
    rng = random.Random(seed)
    tree, slots = RadixCache(), iter(range(1 << 60))
    paths: list[array[int]] = []
    while tree.num_tokens < size:
        shared = _tokens(rng, SHARED)
        for _ in range(SIBLINGS):
            if tree.num_tokens < size:
                paths.append(shared + _tokens(rng, PATH - SHARED))
                _insert(tree, paths[-1], slots)
    match = _median(lambda path: tree.match_prefix(tree.root(), path, len(path)), _picks(rng, paths))
    fresh = [path[:SHARED] + _tokens(rng, PATH - SHARED) for path in _picks(rng, paths)]
    insert = _median(lambda path: _insert(tree, path, slots), fresh)
    evict = _median(lambda _: tree.evict(PATH - SHARED), range(min(OPERATIONS, max(1, size // PATH))))
    return Costs(size, match, insert, evict)


def share(model: str, requests: int, prompt_len: int, max_new: int) -> Share:
    """Run prompts that share nothing, and time every call that reaches the tree from outside."""
    loaded = tiny_model() if model == "tiny" else load_model(model, dtype="auto", cpu_kernels="auto")
    core = build_engine(loaded, RuntimeConfig(cache=CacheConfig(kv_tokens=requests * (prompt_len + max_new))))
    spent = _time_tree(core)
    rng = random.Random(1)
    params = SamplingParams(max_new_tokens=max_new, temperature=0.0, ignore_eos=True)
    vocab = loaded.config.vocab_size
    for i in range(requests):
        tokens = (i, *(rng.randrange(vocab) for _ in range(prompt_len - 1)))
        core.add(GenerateRequest(f"r{i}", tokens, params), 0.0)
    start = time.perf_counter()
    while core.has_work:
        core.step(0.0)
    seconds = time.perf_counter() - start
    assert core.stats().cached_prompt_tokens == 0, "the prompts share something"
    return Share(loaded.name, requests, core.stats().prompt_tokens, seconds, spent[0])


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log(value) over log(size)."""
    xs, ys = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**n for n in range(2, 7)])
    parser.add_argument("--model", default="smollm2", help="or 'tiny', or a path; 'none' skips the run")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=16, help="tokens to generate")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()

    rows = [costs(size) for size in options.sizes]
    print(f"{'cached tokens':>14} {'match us':>10} {'insert us':>10} {'evict us':>10}")
    for row in rows:
        print(f"{row.cached_tokens:>14,} {row.match:>10.1f} {row.insert:>10.1f} {row.evict:>10.1f}")
    growth = {
        name: exponent(options.sizes, [getattr(row, name) for row in rows]) for name in ("match", "insert", "evict")
    }
    print(f"{'exponent':>14} {growth['match']:>10.2f} {growth['insert']:>10.2f} {growth['evict']:>10.2f}")
    figures: dict[str, Any] = {"costs": [asdict(row) for row in rows], "exponents": growth}
    if options.model != "none":
        run = share(options.model, options.requests, options.prompt, options.new)
        print(
            f"{run.requests} requests without reuse on {run.model}: {run.seconds:.2f} s, of which the tree "
            f"{run.tree_seconds * 1000:.2f} ms = {run.percent:.3f} % (goal: < 1 %)"
        )
        figures["share"] = {**asdict(run), "percent": run.percent}
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _tokens(rng: random.Random, count: int) -> array[int]:
    return array(TOKEN_CODE, rng.choices(range(49152), k=count))


def _insert(tree: RadixCache, path: array[int], slots: Any) -> None:
    tree.insert(tree.root(), path, [next(slots) for _ in path])


def _picks(rng: random.Random, paths: list[array[int]]) -> list[array[int]]:
    return rng.choices(paths, k=OPERATIONS)


def _median(operation: Callable[[Any], object], arguments: Any) -> float:
    """Microseconds."""
    times = []
    for argument in arguments:
        start = time.perf_counter()
        operation(argument)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def _time_tree(core: EngineCore) -> list[float]:
    """Wrap the methods of the engine's tree. Returns a cell that holds the seconds spent inside them."""
    tree, spent, depth = core.scheduler.memory.tree, [0.0], [0]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                depth[0] -= 1
                if depth[0] == 0:  # what the tree calls itself is counted once
                    spent[0] += time.perf_counter() - start

        return call

    for name in TIMED:
        setattr(tree, name, timed(getattr(tree, name)))
    return spent


if __name__ == "__main__":
    main()
