"""Part "paths": ways that must lead to the same place. A captured graph gives the logits of its kernels one by one, bit
for bit; the overlapped loop gives the plain loop's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.engine import make_engine
from benchmarks.gpu.machine import Machine, worst_error
from benchmarks.gpu.models import llama_8b, loaded, prompts, qwen3_30b, random_weights, tiny
from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Task
from palmette.runtime.config import Overlap
from palmette.runtime.engine import EngineCore
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.specs import Regex
from palmette.types import GenerateRequest, LogprobParams, SamplingParams, TokenEvent, TokenLogprob

_TIE = 1e-3  # of two logprobs in float32: nearer to each other, rounding decides between them
_LOGITS_ERROR = 3e-2  # of a few layers in bfloat16, where shapes of products differ


def tasks(machine: Machine) -> Sequence[Task]:
    found = []
    for config in (llama_8b(4), qwen3_30b(4)):
        sized = config if machine.measures else tiny(config)
        found.append(Task(f"{config.family}: graph = eager", partial(_graphs, machine, sized)))
    return [*found, Task("overlapped = plain", partial(_loops, machine))]


def _graphs(machine: Machine, config: ModelConfig) -> Iterable[Row]:
    """Decode steps of strangers and of siblings that share a prefix. The first step of a bucket runs kernel by kernel,
    so a new runner on the same keys and values says what a replay should have given."""
    model = loaded(config, random_weights(machine, config))
    batch, shared, own, num_steps = (24, 700, 90, 6) if machine.measures else (4, 33, 3, 3)
    steps, num_slots, prefixes = _steps(config, batch, shared, own, num_steps)
    runner, plain = (_runner(model, batch, num_slots, graphs=graphs) for graphs in (True, False))
    for each in (runner, plain):
        for prompt in prefixes:
            each.forward(prompt)
    differ, away = 0.0, 0.0
    for i, step in enumerate(steps):
        fresh = _runner(model, batch, num_slots, graphs=True)
        _copy_pool(runner, fresh)
        got = _forward(runner, step)
        differ = max(
            differ, float((got != _forward(fresh, _with_prefixes(step, [*prefixes, *steps[:i]]))).double().mean())
        )
        away = max(away, worst_error(got, _forward(plain, step)))
    what = f"{config.family} shapes, {batch} rows of which half share {shared} tokens, {num_steps} steps"
    yield Row(f"graph = kernel by kernel, bit for bit: {what}", "", None, error=differ, allowed_error=0.0)
    yield Row(f"graph ~ shapes without padding: {what}", "", None, error=away, allowed_error=_LOGITS_ERROR)


def _runner(model: LoadedModel, batch: int, num_slots: int, *, graphs: bool) -> PagedRunner:
    context_len = min(1024, model.config.context_len)
    return PagedRunner(
        model.decoder, num_slots=num_slots, max_running_rows=batch, context_len=context_len, graphs=graphs
    )


def _steps(
    config: ModelConfig, batch: int, shared: int, own: int, num_steps: int
) -> tuple[list[ScheduledBatch], int, list[ScheduledBatch]]:
    """(decode steps, slots of a pool, the steps that compute the prompts): the second half of the rows share tokens."""
    rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
    length = shared + own
    num_slots = batch * (length + num_steps)
    slots = rng.permutation(num_slots).reshape(batch, -1).tolist()
    siblings = range(batch // 2, batch)
    ids = rng.integers(0, config.vocab_size, (batch, length + num_steps)).tolist()
    for i in siblings[1:]:
        slots[i][:shared], ids[i][:shared] = slots[siblings[0]][:shared], ids[siblings[0]][:shared]
    prompts_of = []
    for i in range(batch):
        start = shared if i in siblings[1:] else 0
        prefix = (0, slots[i][:start]) if start else None
        row = ScheduledRow(i, tuple(ids[i][start:length]), start, tuple(slots[i][start:length]), prefix)
        prompts_of.append(ScheduledBatch((row,)))
    steps = [
        ScheduledBatch(tuple(ScheduledRow(i, (ids[i][at],), at, (slots[i][at],), None, 0) for i in range(batch)))
        for at in range(length, length + num_steps)
    ]
    return steps, num_slots, prompts_of


def _with_prefixes(step: ScheduledBatch, before: Sequence[ScheduledBatch]) -> ScheduledBatch:
    """The step for a runner that knows no page table yet: with the slots of all that came before it."""
    rows = []
    for row in step.rows:
        slots: list[int] = []
        for earlier in (x for batch in before for x in batch.rows if x.row == row.row):
            slots += [*([] if earlier.prefix is None else earlier.prefix[1]), *earlier.slots]
        rows.append(replace(row, prefix=(0, slots)))
    return ScheduledBatch(tuple(rows))


def _copy_pool(source: PagedRunner, target: PagedRunner) -> None:
    for i in range(source.config.num_layers):
        for theirs, ours in zip(source.kv_pool.layer(i), target.kv_pool.layer(i), strict=True):
            if theirs is not None and ours is not None:
                ours.copy_(theirs)


def _forward(runner: PagedRunner, step: ScheduledBatch) -> Tensor:
    return runner.forward(step).clone()


def _loops(machine: Machine) -> Iterable[Row]:
    """In float32, so that no two tokens are nearly as good: greedy and drawn, penalised and constrained requests."""
    config = tiny() if not machine.measures else replace(llama_8b(2), hidden_size=1024, intermediate_size=2048)
    model = loaded(config, random_weights(machine, config, dtype=torch.float32))
    num, length, new = (32, 300, 40) if machine.measures else (4, 20, 4)
    requests = _requests(config, num, length, new)
    found: dict[Overlap, dict[str, list[TokenLogprob]]] = {}
    modes: tuple[Overlap, Overlap] = ("off", "on")
    for mode in modes:
        kv_tokens = num * (length + new) * 2 if machine.measures else 500
        chunk = 512 if machine.measures else 32
        engine = make_engine(model, kv_tokens=kv_tokens, chunk_size=chunk, overlap=mode)
        found[mode] = _answers(engine, requests)
    differ = [r.request_id for r in requests if not _same(found["off"][r.request_id], found["on"][r.request_id])]
    yield Row(
        f"overlapped loop = plain loop, {num} requests of {length} tokens, {new} new",
        "",
        None,
        error=len(differ) / num,
        detail={"differ": " ".join(differ)} if differ else {},
    )


def _requests(config: ModelConfig, num: int, length: int, new: int) -> list[GenerateRequest]:
    kinds = (
        SamplingParams(max_new_tokens=new, temperature=0.0, ignore_eos=True),
        SamplingParams(max_new_tokens=new, top_p=0.9, ignore_eos=True),
        SamplingParams(max_new_tokens=new, top_k=40, frequency_penalty=0.3, ignore_eos=True),
        SamplingParams(max_new_tokens=new, temperature=0.0),
    )
    inputs = prompts(config, num, length, shared=length * 2 // 3)
    found = []
    for i, ids in enumerate(inputs):
        constraint = Regex(f"[a-z]{{1,{max(1, new - 3)}}}[0-9]{{2}}") if i % 4 == 3 else None
        request = GenerateRequest(
            str(i), ids, kinds[i % 4], seed=i, logprobs=LogprobParams(top=2), constraint=constraint
        )
        found.append(request)
    return found


def _answers(engine: EngineCore, requests: Sequence[GenerateRequest]) -> dict[str, list[TokenLogprob]]:
    found: dict[str, list[TokenLogprob]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add(request, 0.0)
    while engine.has_work:
        for event in engine.step(0.0):
            assert isinstance(event, TokenEvent), "only generation was asked for"
            if event.finish is not None and event.finish.error is not None:
                raise event.finish.error
            found[event.request_id] += event.logprobs
    return found


def _same(one: Sequence[TokenLogprob], other: Sequence[TokenLogprob]) -> bool:
    """The same tokens, up to one that was as good as the next."""
    for a, b in zip(one, other, strict=False):
        if a.token_id != b.token_id:
            near = [value for _, value in a.top]
            return len(near) > 1 and near[0] - near[1] < _TIE
    return len(one) == len(other)
