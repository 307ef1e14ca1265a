"""Forward passes: one a token of output, one a chunk of prompt, none more for whoever decodes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.growth.law import Row, geometric
from benchmarks.growth.measure import lines
from benchmarks.growth.stand_ins import BareScheduler
from palmette.runtime.config import CacheConfig, RuntimeConfig, SchedulerConfig
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.tiny import tiny_model
from palmette.types import GenerateRequest, SamplingParams

LAW = "decode steps"
PROMPT = 32  # tokens
CHUNK = 64  # tokens of a prompt that one step computes
OUTPUT = 16  # tokens


def rows(*, quick: bool = False) -> list[Row]:
    return [
        *outputs(geometric(8, 32 if quick else 512)),
        *prompts(geometric(2 * CHUNK, 512 if quick else 4096)),
        *batches(geometric(4, 16 if quick else 128)),
        *scheduling(geometric(64, 256 if quick else 4096)),
    ]


def outputs(sizes: Sequence[int]) -> list[Row]:
    """Passes of one request by its output."""
    passes = tuple(_passes(1, PROMPT, size) for size in sizes)
    return [Row(LAW, "forward passes", "tokens of output", "passes", 1.0, tuple(sizes), passes)]


def prompts(sizes: Sequence[int]) -> list[Row]:
    """Passes of one request by its prompt."""
    passes = tuple(_passes(1, size, 1) for size in sizes)
    return [Row(LAW, f"forward passes, {CHUNK} a chunk", "tokens of prompt", "passes", 1.0, tuple(sizes), passes)]


def batches(sizes: Sequence[int]) -> list[Row]:
    """Passes of requests that arrive together."""
    passes = tuple(_passes(size, PROMPT, OUTPUT, chunk=PROMPT * max(sizes)) for size in sizes)
    return [Row(LAW, "forward passes", "requests at a time", "passes", 0.0, tuple(sizes), passes)]


def scheduling(sizes: Sequence[int]) -> list[Row]:
    """One decode step of the scheduler, far into a hole, and what one request of many costs in it."""

    def far(size: int) -> int:
        case = BareScheduler(size + 2 * PROMPT)
        case.add(case.tokens(PROMPT), size + 8)
        for _ in range(size):
            case.step()
        return lines(case.step)

    def wide(size: int) -> int:
        case = BareScheduler(
            size * 2 * PROMPT, SchedulerConfig(max_running=size, window=size, chunk_size=size * PROMPT)
        )
        for _ in range(size):
            case.add(case.tokens(PROMPT), 8)
        case.step()
        return lines(case.step)

    row = partial(Row, LAW, unit="lines")
    width = geometric(8, min(512, max(sizes)))
    return [
        row("a decode step, scheduling", "tokens decoded before", claimed=0.0, sizes=tuple(sizes),
            costs=tuple(far(size) for size in sizes)),
        row("a decode step, scheduling", "requests that decode", claimed=1.0, sizes=width,
            costs=tuple(wide(size) for size in width)),
    ]  # fmt: skip


def _passes(requests: int, prompt: int, output: int, chunk: int = CHUNK) -> int:
    """Forward passes of the tiny model for requests that share nothing."""
    core = _engine(requests * (prompt + output), chunk)
    params = SamplingParams(max_new_tokens=output, temperature=0.0, ignore_eos=True)
    for i in range(requests):
        tokens = (i % 250, i // 250, *((i + k * k) % 250 for k in range(prompt - 2)))
        core.add(GenerateRequest(f"r{i}", tokens, params), 0.0)
    while core.has_work:
        core.step(0.0)
    return core.stats().steps


def _engine(kv_tokens: int, chunk: int) -> EngineCore:
    cache, scheduler = CacheConfig(kv_tokens=kv_tokens + PROMPT), SchedulerConfig(chunk_size=chunk)
    return build_engine(tiny_model(context_len=8192), RuntimeConfig(cache=cache, scheduler=scheduler))
