"""The engine beside transformers: the same weights (one copy of them), the same prompts, the same run, greedy.

`generate_batch` is its continuous batching, `generate` with a static cache its fastest way for equal lengths.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.engine import make_engine, run
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.models import greedy, llama_8b, loaded, prompts, random_weights, tiny
from benchmarks.gpu.rows import Row, reached
from palmette.runtime.engine import EngineCore
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, Linear

_ROUNDS = 3


def peer_rows(machine: Machine) -> list[Row]:
    """Throughput over transformers'; without it nothing is compared."""
    goals = (
        ("64 requests of 512 tokens, 128 new: times transformers' generate_batch", ">= 3", 3.0),
        ("64 requests of 512 tokens, 128 new: times transformers' static cache", ">= 1.5", 1.5),
        ("16 prompts of 2048 tokens, 8 branches each of 64 own, 64 new: times generate_batch", ">= 6", 6.0),
    )
    try:
        import transformers
    except ImportError:
        return [Row(what, goal, None, detail={"transformers": "not installed"}) for what, goal, _ in goals]
    config = llama_8b() if machine.measures else tiny()
    weights = random_weights(machine, config)
    peer = _peer(transformers, config, weights)
    measured = machine.measures
    new = 128 if measured else 4
    flat = prompts(config, 64, 512) if measured else prompts(config, 3, 20)
    forked = _forked(config, 16, 8, 2048, 64) if measured else _forked(config, 2, 2, 30, 5)
    engine = make_engine(loaded(config, weights), kv_tokens=180_000 if measured else 600, chunk_size=8192)

    ours, tokens = _ours(engine, flat, new)
    static, theirs = _timed(lambda: _generate(peer, flat, new, machine))
    same = _same(tokens, theirs)
    found = [
        _row(machine, *goals[0], _batch(peer, transformers, flat, new, measured), ours, {}),
        _row(machine, *goals[1], static, ours, {"tokens equal to the first difference": same}),
    ]
    branches = new // 2
    ours, _ = _ours(engine, forked, branches)
    return [*found, _row(machine, *goals[2], _batch(peer, transformers, forked, branches, measured), ours, {})]


def _row(
    machine: Machine, what: str, goal: str, least: float, theirs: float | str, ours: float, detail: dict[str, Any]
) -> Row:
    if isinstance(theirs, str):
        return Row(what, goal, None, detail={"peer": theirs})
    value = theirs / ours if machine.measures else None
    if machine.measures:
        detail = {**detail, "seconds": ours, "peer's": theirs}
    return Row(what, goal, value, reached(value, least=least), detail=detail)


def _ours(engine: EngineCore, inputs: Sequence[Sequence[int]], new: int) -> tuple[float, list[list[int]]]:
    requests = [greedy(str(i), ids, new) for i, ids in enumerate(inputs)]
    times = []
    for _ in range(_ROUNDS):
        engine.flush_cache()
        times.append(run(engine, requests))
    engine.flush_cache()
    return statistics.median(times), _tokens(engine, inputs, new)


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


def _forked(config: ModelConfig, num: int, branches: int, shared: int, own: int) -> list[tuple[int, ...]]:
    return [ids for i in range(num) for ids in prompts(config, branches, shared + own, shared=shared, seed=i)]


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


def _timed(call: Callable[[], list[list[int]]]) -> tuple[float | str, list[list[int]]]:
    times = []
    out: list[list[int]] = []
    for _ in range(_ROUNDS + 1):  # the first compiles
        began = time.perf_counter()
        out = call()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]), out


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


def _batch(peer: Any, transformers: Any, inputs: Sequence[Sequence[int]], new: int, measured: bool) -> float | str:
    """Seconds of continuous batching; why not, where it does not run."""
    if not measured:
        return "needs a GPU"
    settings = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    times = []
    try:
        for _ in range(_ROUNDS + 1):
            began = time.perf_counter()
            out = peer.generate_batch([list(x) for x in inputs], generation_config=settings)
            times.append(time.perf_counter() - began)
            if any(len(answer.generated_tokens) != new for answer in out.values()) or len(out) != len(inputs):
                return "did not answer every request with every token"
    except Exception as error:  # noqa: BLE001 - a peer that fails is a row that says so
        return f"{type(error).__name__}: {error}"[:200]
    return statistics.median(times[1:])
