"""The engine beside transformers: the same weights (one copy of them), the same prompts, the same run, greedy.

`generate_batch` is its continuous batching, `generate` with a static cache its fastest way for equal lengths.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.engine import Model, make_engine, run
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.models import greedy, llama_8b, prompts, tiny
from benchmarks.gpu.rows import Row, reached
from benchmarks.gpu.tasks import Task
from palmette.runtime.engine import EngineCore
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, Linear

_WARM_UPS = 2  # runs that compile and capture
_ROUNDS = 3
_BUDGET = 60.0  # seconds of one peer's rounds

_STATIC = "64 requests of 512 tokens, 128 new: times transformers' static cache"
_BATCH = "64 requests of 512 tokens, 128 new: times transformers' generate_batch"
_FORKED = "16 prompts of 2048 tokens, 8 branches each of 64 own, 64 new: times generate_batch"

Inputs = list[tuple[int, ...]]


def tasks(machine: Machine) -> Sequence[Task]:
    """Throughput over transformers'; without it nothing is compared."""
    sides = _Sides(machine)
    return [
        Task(_STATIC, partial(_static, sides)),
        Task(_BATCH, partial(_batched, sides, _BATCH, 3.0, is_forked=False)),
        Task(_FORKED, partial(_batched, sides, _FORKED, 6.0, is_forked=True)),
    ]


class _Sides:
    """One set of weights, ours and transformers' model on it, and what both are asked."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.model = Model(machine, "8B shapes", llama_8b() if machine.measures else tiny())
        config, seed = self.model.config, machine.seed
        big = machine.measures
        self.new = 128 if big else 4
        self.flat: Inputs = prompts(config, *((64, 512) if big else (3, 20)), seed=seed)
        self.forked: Inputs = _forked(config, *((16, 8, 2048, 64) if big else (2, 2, 30, 5)), seed=seed)

    @cached_property
    def peer(self) -> Any:
        """Raises ImportError without transformers."""
        import transformers  # heavy, and not everywhere

        return _peer(transformers, self.model.config, self.model.weights)

    @cached_property
    def ours_on_flat(self) -> tuple[float, list[list[int]]]:
        return self.ours(self.flat, self.new)

    def ours(self, inputs: Inputs, new: int) -> tuple[float, list[list[int]]]:
        """Median seconds, nothing cached between runs; and the tokens."""
        kv_tokens = 180_000 if self.machine.measures else 600
        engine = make_engine(self.model.loaded, kv_tokens=kv_tokens, chunk_size=8192)
        requests = [greedy(str(i), ids, new) for i, ids in enumerate(inputs)]
        times = []
        for _ in range(_WARM_UPS + _ROUNDS if self.machine.measures else 1):
            engine.flush_cache()
            times.append(run(engine, requests))
        engine.flush_cache()
        tokens = _tokens(engine, inputs, new)
        del engine  # its pool's memory is the peer's now
        gc.collect()
        if self.machine.measures:
            torch.cuda.empty_cache()
        return statistics.median(times[_WARM_UPS:] or times), tokens


def _static(sides: _Sides) -> Iterable[Row]:
    goal = ">= 1.5"
    try:
        peer = sides.peer
    except ImportError:
        return [Row(_STATIC, goal, None, detail={"transformers": "not installed"})]
    ours, tokens = sides.ours_on_flat
    theirs, found = _timed(sides.machine, lambda: _generate(peer, sides.flat, sides.new, sides.machine))
    detail = {"tokens equal to the first difference": _same(tokens, found)}
    return [_row(sides.machine, _STATIC, goal, 1.5, theirs, ours, detail)]


def _batched(sides: _Sides, what: str, least: float, *, is_forked: bool) -> Iterable[Row]:
    goal = f">= {least:g}"
    if not sides.machine.measures:
        return [Row(what, goal, None, detail={"peer": "needs a GPU"})]
    try:
        peer = sides.peer
    except ImportError:
        return [Row(what, goal, None, detail={"transformers": "not installed"})]
    inputs, new = (sides.forked, sides.new // 2) if is_forked else (sides.flat, sides.new)
    ours, tokens = sides.ours(inputs, new) if is_forked else sides.ours_on_flat
    try:
        theirs, found = _timed(sides.machine, lambda: _generate_batch(peer, inputs, new))
    finally:
        peer.destroy_cached_continuous_batching_manager()  # and its cache
    detail = {"tokens equal to the first difference": _same(tokens, found)}
    return [_row(sides.machine, what, goal, least, theirs, ours, detail)]


def _row(
    machine: Machine, what: str, goal: str, least: float, theirs: float, ours: float, detail: dict[str, Any]
) -> Row:
    value = theirs / ours if machine.measures else None
    if machine.measures:
        detail = {**detail, "seconds": ours, "peer's": theirs}
    return Row(what, goal, value, reached(value, least=least), detail=detail)


def _tokens(engine: EngineCore, inputs: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in inputs]
    for i, ids in enumerate(inputs):
        engine.add(greedy(str(i), ids, new), 0.0)
    while engine.has_work:
        for event in engine.step(0.0):
            found[int(event.request_id)] += event.token_ids  # type: ignore[union-attr] # only generation was asked for
    return found


def _same(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of tokens that are equal up to each sequence's first difference."""
    equal = total = 0
    for mine, other in zip(ours, theirs, strict=True):
        pairs = list(zip(mine, other, strict=False))
        equal += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        total += len(pairs)
    return equal / total


def _forked(config: ModelConfig, num: int, branches: int, shared: int, own: int, *, seed: int) -> Inputs:
    return [ids for i in range(num) for ids in prompts(config, branches, shared + own, shared=shared, seed=seed + i)]


def _peer(transformers: Any, config: ModelConfig, weights: DecoderWeights) -> Any:
    """A transformers model on views of our weights."""
    llama = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_len,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.layers[0].rope.theta},
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        dtype=weights.head.dtype,
    )
    transformers.logging.set_verbosity_error()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            llama, attn_implementation="sdpa", dtype=weights.head.dtype
        )
    parts: dict[str, Tensor] = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.final_norm,
        "lm_head.weight": weights.head,
    }
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for i, layer in enumerate(weights.layers):
        assert isinstance(layer.qkv, Linear), "random weights are dense"
        assert isinstance(layer.out, Linear), "random weights are dense"
        assert isinstance(layer.mlp, DenseMlp), "random weights are dense"
        at = f"model.layers.{i}."
        gate_up, down = layer.mlp.gate_up.tensors()[0], layer.mlp.down.tensors()[0]
        for name, part in zip("qkv", torch.split(layer.qkv.weight, [q, kv, kv]), strict=True):
            parts[f"{at}self_attn.{name}_proj.weight"] = part
        parts[f"{at}self_attn.o_proj.weight"] = layer.out.weight
        parts[f"{at}mlp.gate_proj.weight"], parts[f"{at}mlp.up_proj.weight"] = gate_up.chunk(2)
        parts[f"{at}mlp.down_proj.weight"] = down
        parts[f"{at}input_layernorm.weight"] = layer.attention_norm
        parts[f"{at}post_attention_layernorm.weight"] = layer.mlp_norm
    dtype, device = weights.head.dtype, weights.head.device
    model.load_state_dict({name: part.to(dtype) for name, part in parts.items()}, assign=True)
    rotary: type[nn.Module] = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary(config=llama).to(device)  # its tables are no parameters
    return model.eval()


def _timed(machine: Machine, call: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Median seconds, without the first runs, in which peers compile and capture; and the last one's tokens."""
    if not machine.measures:
        return 0.0, call()
    times: list[float] = []
    out: list[list[int]] = []
    while len(times) < _WARM_UPS + 1 or (len(times) < _WARM_UPS + _ROUNDS and sum(times[_WARM_UPS:]) < _BUDGET):
        torch.cuda.synchronize()
        began = time.perf_counter()
        out = call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[_WARM_UPS:]), out


@torch.inference_mode()
def _generate(peer: Any, inputs: Sequence[Sequence[int]], new: int, machine: Machine) -> list[list[int]]:
    ids = torch.tensor([list(x) for x in inputs], device=machine.device)
    static = {"cache_implementation": "static"} if machine.measures else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own code
        out = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **static,
        )
    found: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return found


def _generate_batch(peer: Any, inputs: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """Continuous batching by a manager that is kept, so that its cache and its graphs are made once.

    Raises:
        RuntimeError: it did not answer every request with every token.
    """
    import transformers

    settings = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own code
        answers = peer.generate_batch(
            [list(x) for x in inputs], generation_config=settings, progress_bar=False, persistent_manager=True
        )
    found = [list(answer.generated_tokens) for answer in answers.values()]
    if len(found) != len(inputs) or any(len(tokens) != new for tokens in found):
        raise RuntimeError(f"{len(found)} of {len(inputs)} answers, of {sorted({len(x) for x in found})} tokens")
    return found
