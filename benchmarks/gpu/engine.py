"""Engine rows: decode steps against the bytes they read, prefill against the matrix rate, and the idle share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.machine import Call, Machine, graph_seconds, held_seconds, host_seconds, pace_seconds
from benchmarks.gpu.models import (
    CountingKernels,
    greedy,
    llama_8b,
    loaded,
    prompts,
    qwen3_30b,
    random_weights,
    tiny,
    weight_bytes,
)
from benchmarks.gpu.rows import Row, reached
from benchmarks.gpu.tasks import Task
from palmette.kernels.gpu.sampling import sample
from palmette.kernels.sampling import RowDraws
from palmette.runtime.config import CacheConfig, Overlap, RuntimeConfig, SchedulerConfig
from palmette.runtime.device_ops import DeviceOps
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.layers import DecoderWeights
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.sampler import Draw
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.types import GenerateRequest, SamplingParams, TokenEvent

_EXPERT_LAYERS = 24  # of 48: half the memory and half the time; what a step costs is per layer


class Model:
    """A model of random weights, made when a task first needs it and kept for the next one."""

    def __init__(self, machine: Machine, name: str, config: ModelConfig) -> None:
        self.machine, self.name, self.config = machine, name, config
        self.kernels = CountingKernels()

    @cached_property
    def weights(self) -> DecoderWeights:
        return random_weights(self.machine, self.config)

    @cached_property
    def loaded(self) -> LoadedModel:
        return loaded(self.config, self.weights, self.kernels)

    def forget(self) -> Iterable[Row]:
        """A task: the next model needs the memory."""
        for name in ("loaded", "weights"):
            self.__dict__.pop(name, None)
        return ()


def tasks(machine: Machine) -> Sequence[Task]:
    """The engine rows of docs/kernels.md."""
    dense = Model(machine, "8B shapes", llama_8b() if machine.measures else tiny())
    sparse = qwen3_30b(_EXPERT_LAYERS) if machine.measures else tiny(qwen3_30b())
    experts = Model(machine, f"Qwen3-30B-A3B shapes, {sparse.num_layers} layers", sparse)
    big = machine.measures
    return [
        _decode(dense, 1, 1024 if big else 40, 1.15),
        _decode(dense, 64 if big else 3, 1024 if big else 40, 1.25),
        Task("sampling", partial(_sampling, dense)),
        Task("8B shapes, prefill", partial(_prefill, dense)),
        Task("overlap", partial(_overlap, dense)),
        Task("give back the dense model", dense.forget),
        _decode(experts, 1, 1024 if big else 40, None),
        _decode(experts, 64 if big else 3, 1024 if big else 40, None),
    ]


def make_engine(model: LoadedModel, *, kv_tokens: int, chunk_size: int, overlap: Overlap = "auto") -> EngineCore:
    """An engine of its own on the same weights."""
    scheduler = SchedulerConfig(chunk_size=chunk_size, overlap=overlap)
    return build_engine(model, RuntimeConfig(cache=CacheConfig(kv_tokens=kv_tokens), scheduler=scheduler))


def run(engine: EngineCore, requests: Sequence[GenerateRequest]) -> float:
    """Seconds until all are answered, with the tokens they asked for. Their last tokens are here when it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what was queued before is not theirs
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
    took = time.perf_counter() - began
    assert num == left, "every request asked for a number of tokens"
    return took


def _decode(model: Model, batch: int, context: int, most: float | None) -> Task:
    what = f"{model.name}, decode step, batch {batch}, {context} context"
    return Task(what, partial(_decode_row, model, what, batch, context, most))


def _decode_row(model: Model, what: str, batch: int, context: int, most: float | None) -> Iterable[Row]:
    machine, config = model.machine, model.config
    step, hit = _decode_step(model, batch, context)
    took = pace_seconds(machine, step)
    num_bytes = weight_bytes(model.weights, hit) + batch * context * _kv_bytes(config)
    floor = num_bytes / machine.copy_bandwidth if machine.measures else 0.0
    value = took / floor if machine.measures else None
    detail: dict[str, float | str] = {"experts hit": statistics.mean(hit)} if hit else {}
    if machine.measures:
        detail |= {"ms": took * 1e3, "floor ms": floor * 1e3, "tokens/s": batch / took}
        # what the device needs with all of it queued, and the host to queue it: the larger is the pace
        detail |= {"device ms": held_seconds(machine, step) * 1e3, "host ms": host_seconds(machine, step) * 1e3}
    goal = "" if most is None else f"<= {most}"
    yield Row(f"{what}: measured / floor", goal, value, reached(value, most=most) if most else None, detail=detail)


def _decode_step(model: Model, batch: int, context: int, *, draws: bool = False) -> tuple[Call, list[int]]:
    """A step that is compiled, captured, and the same every time; and how many experts each layer of it takes.

    Args:
        draws: behind the logits, what the engine asks of a greedy step.
    """
    config, machine = model.config, model.machine
    runner = PagedRunner(
        model.loaded.decoder,
        num_slots=batch * context,
        max_running_rows=batch,
        context_len=min(context, config.context_len),
    )
    for index in range(config.num_layers):
        for pool in runner.kv_pool.layer(index)[:2]:
            assert pool is not None, "keys and values are there"
            pool.normal_()
    order = np.random.default_rng(machine.seed).permutation(batch * context).reshape(batch, context).tolist()
    ids = np.random.default_rng(machine.seed).integers(0, config.vocab_size, batch).tolist()
    rows = [ScheduledRow(i, (ids[i],), context - 1, (order[i][-1],), (0, order[i][:-1]), 0) for i in range(batch)]
    with model.kernels.counting() as hit:  # the first step of its shapes runs kernel by kernel, and may be looked at
        runner.forward(ScheduledBatch(tuple(rows)))
    again = ScheduledBatch(tuple(ScheduledRow(x.row, x.token_ids, x.start, x.slots, None, 0) for x in rows))
    greedy_draws = [Draw(SamplingParams(temperature=0.0))] * batch

    def step() -> None:
        logits = runner.forward(again)
        if draws:
            runner.ops.finite_rows(logits)
            runner.keep_drawn(range(batch), runner.ops.sample(logits, greedy_draws))

    for _ in range(3):  # the first of them is captured
        step()
    return step, hit


def _kv_bytes(config: ModelConfig) -> int:
    """Of one token in all layers, in bfloat16."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * 2


def _sampling(model: Model) -> Iterable[Row]:
    """Drawing 64 tokens under masks and filters, as a share of a decode step: the kernels, then the whole call."""
    machine, config = model.machine, model.config
    rows = 64 if machine.measures else 3
    step = pace_seconds(machine, _decode_step(model, rows, 1024 if machine.measures else 40)[0])
    words = -(-config.vocab_size // 32)
    rng = np.random.default_rng(machine.seed)
    masks = rng.integers(0, 1 << 32, (rows, words), dtype=np.uint32)
    ops = DeviceOps(machine.device)
    for name, params in (
        ("top-k and top-p", SamplingParams(temperature=0.8, top_p=0.95, top_k=50)),
        ("top-p", SamplingParams(temperature=0.8, top_p=0.95)),
        ("greedy", SamplingParams(temperature=0.0)),
    ):
        for spread in (1.3, 4.0):  # of a model's first layers' logits, and of a sure one's
            logits = torch.randn(rows, config.vocab_size, device=machine.device) * spread
            draws = [Draw(params, seed=i, mask=mask) for i, mask in enumerate(masks)]
            known = _row_draws(machine, params, rows, masks)
            kernels = graph_seconds(machine, [partial(sample, logits, known)])
            whole = held_seconds(machine, partial(ops.sample, logits, draws))
            host = host_seconds(machine, partial(ops.sample, logits, draws))
            value = whole / step if machine.measures else None
            detail = {}
            if machine.measures:
                detail = {"kernels us": kernels * 1e6, "with copies us": whole * 1e6, "host us": host * 1e6}
            what = f"sampling {rows} rows of {config.vocab_size}, masks, {name}, spread {spread}: share of the step"
            yield Row(what, "< 0.03", value, reached(value, most=0.03), detail=detail)


def _row_draws(machine: Machine, params: SamplingParams, rows: int, masks: NDArray[np.uint32]) -> RowDraws:
    def each(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=machine.device)

    return RowDraws(
        temperature=each(params.temperature, torch.float32),
        top_k=each(max(0, params.top_k), torch.int32),
        top_p=each(params.top_p, torch.float64),
        min_p=each(params.min_p, torch.float32),
        at=torch.rand(rows, dtype=torch.float64, device=machine.device),
        any_drawn=not params.is_greedy,
        any_filtered=not params.is_greedy and (params.top_k > 0 or params.top_p < 1.0),
        mask_row=torch.arange(rows, dtype=torch.int32, device=machine.device),
        masks=torch.from_numpy(masks.view(np.int32)).to(machine.device),
    )


def _prefill(model: Model) -> Iterable[Row]:
    machine, config = model.machine, model.config
    length = 16384 if machine.measures else 60
    engine = make_engine(model.loaded, kv_tokens=2 * length + 64, chunk_size=length)
    times = []
    for seed in range(5):
        engine.flush_cache()
        [prompt] = prompts(config, 1, length, seed=machine.seed + seed)
        request = greedy(str(seed), prompt, 1)
        before = engine.stats().computed_prompt_tokens
        times.append(run(engine, [request]))
        computed = engine.stats().computed_prompt_tokens - before
        assert computed == length, f"{computed} of {length} tokens were computed: the others were cached"
    took = statistics.median(times[1:])  # the first compiles
    matrices = [t for layer in model.weights.layers for t in layer.tensors() if t.dim() == 2]
    dense = 2 * sum(t.numel() for t in matrices) * length
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * length * (length + 1) // 2
    value = (dense + attention) / took / machine.matrix_rate if machine.measures else None
    detail = (
        {"ms": took * 1e3, "tokens/s": length / took, "slowest ms": max(times[1:]) * 1e3} if machine.measures else {}
    )
    what = f"{model.name}, prefill of {length} tokens, end to end: share of matrix rate"
    yield Row(what, ">= 0.65", value, reached(value, least=0.65), detail=detail)


def _overlap(model: Model) -> Iterable[Row]:
    """The engine's own pace against the device's with nobody to wait for: what the device waits for."""
    machine = model.machine
    batch, context, new = (64, 1024, 200) if machine.measures else (3, 40, 8)
    few = new // 4
    middle = context + (few + new) // 2  # keys of a row, on the average of the steps that only the long run has
    busy = held_seconds(machine, _decode_step(model, batch, middle, draws=True)[0])
    inputs = prompts(model.config, batch, context, seed=machine.seed)

    def requests(num_new: int) -> list[GenerateRequest]:
        return [greedy(str(i), ids, num_new) for i, ids in enumerate(inputs)]

    modes: tuple[Overlap, ...] = ("on", "off")
    for overlap in modes:
        engine = make_engine(model.loaded, kv_tokens=batch * (context + 3 * new), chunk_size=8192, overlap=overlap)
        run(engine, requests(2))  # prompts cached
        run(engine, requests(few))  # its shapes compiled and captured, all rows in step
        pairs = [(run(engine, requests(few)), run(engine, requests(new))) for _ in range(3 if machine.measures else 1)]
        pace = statistics.median((long - short) / (new - few) for short, long in pairs)  # without the beginning
        idle = max(0.0, 1.0 - busy / pace) if machine.measures else None
        detail = {}
        if machine.measures:
            detail = {"ms a step": pace * 1e3, "device's ms": busy * 1e3, "tokens/s": batch / pace}
        goal, met = ("< 0.03", reached(idle, most=0.03)) if overlap == "on" else ("", None)
        what = f"{model.name}, engine at batch {batch}, overlap {overlap}: share of time the GPU idles"
        yield Row(what, goal, idle, met, detail=detail)
