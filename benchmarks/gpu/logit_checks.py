"""Checks of sampling and logprobs on vocabularies of real size, through `DeviceOps`, as the engine asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.poison import poisoned
from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Task
from palmette.runtime import sampler
from palmette.runtime.device_ops import DeviceOps
from palmette.runtime.sampler import Draw
from palmette.types import SamplingParams

_LOGPROB_ERROR = 1e-5  # absolute, on numbers of about 10
_MARGIN = 1e-5  # of a draw: nearer to its neighbour, rounding decides

_PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "no filter": SamplingParams(temperature=0.8),
    "top-k": SamplingParams(top_k=50),
    "top-p": SamplingParams(temperature=1.3, top_p=0.95),
    "top-k and top-p": SamplingParams(temperature=0.7, top_k=200, top_p=0.8),
    "min-p": SamplingParams(min_p=0.02),
    "penalties and bias": SamplingParams(
        top_p=0.9, frequency_penalty=0.5, presence_penalty=0.2, repetition_penalty=1.2, logit_bias=((5, 3.0), (7, -9.0))
    ),
}


def tasks(machine: Machine) -> Sequence[Task]:
    found = [Task(f"sampling: {name}", partial(_sampling, machine, name, [p])) for name, p in _PARAMS.items()]
    return [
        *found,
        Task("sampling: all in one batch", partial(_sampling, machine, "all in one batch", list(_PARAMS.values()))),
        Task("logprobs", partial(_logprobs, machine)),
    ]


def _logits(machine: Machine, rows: int, *, spread: float = 2.0) -> Tensor:
    vocab = 128256 if machine.measures else 300
    return torch.randn(rows, vocab, device=machine.device) * spread


def _sampling(machine: Machine, name: str, params: Sequence[SamplingParams]) -> Iterable[Row]:
    """Rows flat and peaked, with masks and without, against the sampler's definition on the host."""
    for spread in (0.5, 4.0):
        rows = 16 if machine.measures else len(params)
        logits = _logits(machine, rows, spread=spread)
        draws = [_draw(params[i % len(params)], i, logits.shape[1]) for i in range(rows)]
        with poisoned():
            got = DeviceOps(machine.device).sample(logits, draws).get()
        on_host = logits.cpu()
        wanted = sampler.sample(on_host.clone(), draws)
        wrong = [
            i
            for i in range(rows)
            if got[i] != wanted[i] and sampler.draw_margin(on_host[i].clone(), draws[i]) > _MARGIN
        ]
        what = f"check sampling of {rows} rows of {logits.shape[1]}, spread {spread}: {name}"
        detail = {"wrong rows": str(wrong)} if wrong else {}
        yield Row(what, "", None, error=len(wrong) / rows, detail=detail)


def _draw(params: SamplingParams, i: int, vocab: int) -> Draw:
    rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
    draw = Draw(params, seed=int(rng.integers(1 << 62)), index=i)
    if i % 2:
        mask = rng.integers(0, 1 << 32, -(-vocab // 32), dtype=np.uint32)
        if vocab % 32:
            mask[-1] &= (1 << vocab % 32) - 1
        mask[0] |= 1
        draw = replace(draw, mask=mask)
    if params.repetition_penalty != 1.0:
        counts = {int(x): 1 + int(x) % 3 for x in rng.integers(0, vocab, 30)}
        draw = replace(draw, counts=counts, prompt_ids=tuple(int(x) for x in rng.integers(0, vocab, 100)), banned=(3,))
    return draw


def _logprobs(machine: Machine) -> Iterable[Row]:
    rows, top = (33, 20) if machine.measures else (3, 4)
    logits = _logits(machine, rows)
    logits[1] = -torch.inf
    logits[1, 17] = 2.0
    logits[1, 40:90] = 1.0
    ids = [int(x) for x in torch.randint(logits.shape[1], (rows,))]
    ids[1] = 17
    ops = DeviceOps(machine.device)
    with poisoned():
        found = ops.token_logprobs(logits, ids, top).get()
        picked = ops.pick_logprobs(logits, [2, 0, 2], [ids[0], ids[0], ids[2]]).get()
    wanted = logits.double().log_softmax(-1)
    values = torch.tensor([x.logprob for x in found], dtype=torch.float64)
    best = torch.tensor([[value for _, value in x.top] for x in found], dtype=torch.float64)
    at = torch.tensor([[token for token, _ in x.top] for x in found], device=logits.device)
    own = wanted.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].cpu()
    away = float((values - own).abs().amax())
    yield Row("check token_logprobs", "", None, error=away, allowed_error=_LOGPROB_ERROR)
    away = float((best - wanted.gather(1, at).cpu()).abs().amax())
    yield Row("check the best alternatives' logprobs", "", None, error=away, allowed_error=_LOGPROB_ERROR)
    exactly = wanted.topk(top).values.cpu()
    away = float((best - exactly).abs().amax())
    yield Row("check that there are no better alternatives", "", None, error=away, allowed_error=_LOGPROB_ERROR)
    pairs = [float(wanted[r, t]) for r, t in zip([2, 0, 2], [ids[0], ids[0], ids[2]], strict=True)]
    away = max(abs(a - b) for a, b in zip(picked, pairs, strict=True))
    yield Row("check pick_logprobs", "", None, error=away, allowed_error=_LOGPROB_ERROR)
    logits[0, 99], logits[2, -1] = torch.nan, torch.inf
    finite = ops.finite_rows(logits).get()
    wrong = sum(ok != (i not in (0, 2)) for i, ok in enumerate(finite))
    yield Row("check finite_rows", "", None, error=float(wrong))
