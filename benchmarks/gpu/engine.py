"""Engine rows: decode steps against the bytes they read, prefill against the matrix rate, and the idle share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from palmette.runtime.device_ops import DeviceOps

from benchmarks.gpu.machine import Machine, seconds
from benchmarks.gpu.models import greedy, llama_8b, loaded, prompts, random_weights, tiny, weight_bytes
from benchmarks.gpu.rows import Row, reached
from palmette.runtime.config import CacheConfig, RuntimeConfig, SchedulerConfig
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.layers import DecoderWeights
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.sampler import Draw
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.types import GenerateRequest, SamplingParams, TokenEvent


def engine_rows(machine: Machine) -> list[Row]:
    """The engine rows of docs/kernels.md, on one model."""
    config = llama_8b() if machine.measures else tiny()
    weights = random_weights(machine, config)
    model = loaded(config, weights)
    found = []
    step_64 = 0.0
    for batch, context, most in (
        ((1, 1024, 1.15), (64, 1024, 1.25)) if machine.measures else ((1, 40, 1.15), (3, 40, 1.25))
    ):
        took = _decode_step(machine, model, batch, context)
        floor = (weight_bytes(config, weights) + batch * context * _kv_bytes(config)) / max(machine.copy_bandwidth, 1.0)
        value = took / floor if machine.measures else None
        detail = {"ms": took * 1e3, "floor ms": floor * 1e3, "tokens/s": batch / took} if machine.measures else {}
        what = f"8B shapes, decode step, batch {batch}, {context} context: measured / floor"
        found.append(Row(what, f"<= {most}", value, reached(value, most=most), detail=detail))
        step_64 = took
    return [
        *found,
        _sampling(machine, config, step_64),
        _prefill(machine, model, config, weights),
        *_overlap(machine, model, step_64),
    ]


def make_engine(model: LoadedModel, *, kv_tokens: int, chunk_size: int, overlap: str = "auto") -> EngineCore:
    """An engine of its own on the same weights."""
    scheduler = SchedulerConfig(chunk_size=chunk_size, overlap=overlap)  # type: ignore[arg-type] # of the caller's
    return build_engine(model, RuntimeConfig(cache=CacheConfig(kv_tokens=kv_tokens), scheduler=scheduler))


def run(engine: EngineCore, requests: Sequence[GenerateRequest]) -> float:
    """Seconds until all are answered, with the tokens they asked for."""
    began = time.perf_counter()
    for request in requests:
        engine.add(request, 0.0)
    left = {request.request_id: request.params.max_new_tokens for request in requests}
    num = dict.fromkeys(left, 0)
    while engine.has_work:
        for event in engine.step(0.0):
            assert isinstance(event, TokenEvent), "only generation was asked for"
            num[event.request_id] += len(event.token_ids)
            if event.finish is not None and event.finish.error is not None:
                raise event.finish.error
    assert num == left, "every request asked for a number of tokens"
    return time.perf_counter() - began


def _kv_bytes(config: ModelConfig) -> int:
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * 2


def _decode_step(machine: Machine, model: LoadedModel, batch: int, context: int) -> float:
    """Seconds of the device for one decode step, graph replays back to back."""
    runner = PagedRunner(
        model.decoder,
        num_slots=batch * context,
        max_running_rows=batch,
        context_len=min(context, model.config.context_len),
    )
    for index in range(model.config.num_layers):
        for pool in runner.kv_pool.layer(index)[:2]:
            assert pool is not None, "keys and values are there"
            pool.normal_()
    order = np.random.default_rng(0).permutation(batch * context).reshape(batch, context)
    rows = [
        ScheduledRow(i, (i,), context - 1, (int(order[i, -1]),), (0, order[i, :-1].tolist()), 0) for i in range(batch)
    ]
    runner.forward(ScheduledBatch(tuple(rows)))
    again = ScheduledBatch(tuple(ScheduledRow(x.row, x.token_ids, x.start, x.slots, None, 0) for x in rows))
    for _ in range(3):
        runner.forward(again)
    return seconds(machine.device, [partial(runner.forward, again)], budget=1.0)


def _sampling(machine: Machine, config: ModelConfig, step: float) -> Row:
    """Drawing 64 tokens under masks and filters, as a share of a decode step."""
    rows = 64 if machine.measures else 3
    logits = torch.randn(rows, config.vocab_size, device=machine.device) * 2
    words = -(-config.vocab_size // 32)
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=0.8, top_p=0.95, top_k=50)
    draws = [Draw(params, seed=i, mask=rng.integers(0, 1 << 32, words, dtype=np.uint32)) for i in range(rows)]
    ops = DeviceOps(machine.device)
    took = seconds(machine.device, [partial(ops.sample, logits, draws)])
    value = took / step if machine.measures else None
    detail = {"microseconds": took * 1e6} if machine.measures else {}
    what = f"sampling {rows} rows of {config.vocab_size} with masks, top-k and top-p: share of the step"
    return Row(what, "< 0.03", value, reached(value, most=0.03), detail=detail)


def _prefill(machine: Machine, model: LoadedModel, config: ModelConfig, weights: DecoderWeights) -> Row:
    length = 16384 if machine.measures else 60
    engine = make_engine(model, kv_tokens=2 * length + 64, chunk_size=length)
    times = []
    for seed in range(4):
        engine.flush_cache()
        [prompt] = prompts(config, 1, length, seed=seed)
        times.append(run(engine, [greedy(str(seed), prompt, 1)]))
    took = statistics.median(times[1:])
    dense = 2 * sum(t.numel() for layer in weights.layers for t in layer.tensors() if t.dim() == 2) * length
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1) // 2
    value = (dense + attention) / took / machine.matrix_rate if machine.measures else None
    detail = {"ms": took * 1e3, "tokens/s": length / took} if machine.measures else {}
    what = f"8B shapes, prefill of {length} tokens, end to end: share of matrix rate"
    return Row(what, ">= 0.65", value, reached(value, least=0.65), detail=detail)


def _overlap(machine: Machine, model: LoadedModel, step: float) -> list[Row]:
    """The engine's own pace against the device's: what the device waits for."""
    batch, context, new = (64, 1024, 200) if machine.measures else (3, 40, 6)
    requests = [greedy(str(i), ids, new) for i, ids in enumerate(prompts(model.config, batch, context))]
    found = []
    for overlap in ("on", "off"):
        engine = make_engine(model, kv_tokens=batch * (context + new) + 64, chunk_size=8192, overlap=overlap)
        run(engine, [greedy(r.request_id, r.token_ids, 4) for r in requests])  # prompts cached, graphs captured
        short, long = (run(engine, [greedy(r.request_id, r.token_ids, n) for r in requests]) for n in (new // 4, new))
        pace = (long - short) / (new - new // 4)  # seconds of a step, without the beginning
        idle = max(0.0, 1.0 - step / pace) if machine.measures else None
        detail = {"ms a step": pace * 1e3, "tokens/s": batch / pace} if machine.measures else {}
        goal, met = ("< 0.03", reached(idle, most=0.03)) if overlap == "on" else ("", None)
        found.append(
            Row(
                f"engine at batch {batch}, overlap {overlap}: share of time the GPU idles",
                goal,
                idle,
                met,
                detail=detail,
            )
        )
    return found
