"""Small random checkpoints of every family, made with transformers, as directories and as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow

VOCAB = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA: dict[str, Any] = {**_SIZES, "head_dim": 16, "sliding_window": 40, "query_pre_attn_scalar": 24}


def configs() -> dict[str, Any]:
    """Every family, and what its members vary in."""
    tf = transformers
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    gemma3_rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    mixtral = {**_SIZES, "num_hidden_layers": 2, "num_local_experts": 5, "num_experts_per_tok": 2}
    qwen3_moe = {**_SIZES, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 24}
    gemma3 = {**_GEMMA, "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]}
    return {
        "llama": tf.LlamaConfig(**_SIZES),
        "llama-tied": tf.LlamaConfig(**_SIZES, tie_word_embeddings=True),
        "llama-biases": tf.LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True),
        "llama-mha": tf.LlamaConfig(**{**_SIZES, "num_key_value_heads": 4}),
        "llama-3.1": tf.LlamaConfig(**_SIZES, rope_parameters=_LLAMA3_ROPE),
        "llama-linear": tf.LlamaConfig(
            **_SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        ),
        "llama-yarn": tf.LlamaConfig(**_SIZES, rope_parameters=yarn),
        "mistral": tf.MistralConfig(**_SIZES, sliding_window=None),
        "mistral-window": tf.MistralConfig(**_SIZES, sliding_window=40, head_dim=24),
        "qwen2": tf.Qwen2Config(**_SIZES),
        "qwen2-window": tf.Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=40, max_window_layers=2),
        "qwen3": tf.Qwen3Config(**_SIZES, head_dim=24),
        "mixtral": tf.MixtralConfig(**mixtral),
        "mixtral-window": tf.MixtralConfig(**{**mixtral, "num_experts_per_tok": 1}, sliding_window=40),
        "qwen3_moe": tf.Qwen3MoeConfig(**qwen3_moe, norm_topk_prob=True),
        "qwen3_moe-some-dense": tf.Qwen3MoeConfig(
            **qwen3_moe, mlp_only_layers=[3], decoder_sparse_step=2, use_sliding_window=True, sliding_window=40
        ),
        "gemma2": tf.Gemma2Config(**_GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=2.0),
        "gemma3": tf.Gemma3TextConfig(**gemma3, rope_parameters=gemma3_rope),
    }


def random_model(config: Any, seed: int = 0) -> Any:
    """A transformers model with weights large enough that every part of it matters."""
    config._attn_implementation = "eager"  # the only one with Gemma 2's soft cap
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.2)
            else:
                parameter.add_(noise * 0.2)
    return model


def reference_logits(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits.float()


def our_logits(model: Decoder, ids: tuple[int, ...], pieces: tuple[int, ...] = ()) -> torch.Tensor:
    """Logits of every position, computed in pieces of these lengths and then token by token, or at once."""
    runner = ModelRunner(model, num_slots=2 * len(ids), max_running_rows=2)
    slots = tuple(torch.randperm(2 * len(ids), generator=torch.Generator().manual_seed(1))[: len(ids)].tolist())
    parts, at = [], 0
    for num in pieces or (len(ids),):
        row = ScheduledRow(1, ids[at : at + num], at, slots[at : at + num], logits_from=0)
        parts.append(runner.forward(ScheduledBatch((row,))))
        at += num
    assert at == len(ids)
    return torch.cat(parts)


# -- GGUF --

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(
    model: Any, path: Path, architecture: str, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
) -> None:
    """What llama.cpp's converter writes for this model: its names, its order of rotated rows, Gemma's norms plus 1."""
    config = model.config
    gemma = architecture.startswith("gemma")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    num_experts = getattr(config, "num_local_experts", None) or 0
    writer.add_rope_freq_base(1e6 if architecture == "gemma3" or (architecture == "llama" and num_experts) else 1e4)
    if num_experts:
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    if gemma:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = _neighbours_paired(values, head_dim)
        if gemma and name.endswith("norm.weight"):
            values = values + 1.0
        for key, part in _gguf_tensors(name, values, gemma):
            if part.ndim == 1 or part.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
                writer.add_tensor(key, part)
            else:
                writer.add_tensor(key, gguf.quants.quantize(part, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _neighbours_paired(values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _gguf_tensors(name: str, values: NDArray[np.float32], gemma: bool) -> list[tuple[str, NDArray[np.float32]]]:
    """The file's tensors for one of the model's: experts are stacked there too, gate and up apart."""
    if ".experts." not in name:
        return [(_gguf_name(name, gemma), values)]
    at = f"blk.{name.split('.')[2]}.ffn_"
    if name.endswith("down_proj"):
        return [(f"{at}down_exps.weight", values)]
    gate, up = (np.ascontiguousarray(half) for half in np.split(values, 2, axis=1))
    return [(f"{at}gate_exps.weight", gate), (f"{at}up_exps.weight", up)]


def _gguf_name(name: str, gemma: bool) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, index, part = stem.split(".", 3)
    if part == "post_attention_layernorm":
        return f"blk.{index}.{'post_attention_norm' if gemma else 'ffn_norm'}.{kind}"
    return f"blk.{index}.{_GGUF_NAMES[part]}.{kind}"
