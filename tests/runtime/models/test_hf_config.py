"""Reading config.json: both generations of transformers, and what must be refused."""

from __future__ import annotations

from typing import Any

import pytest

from palmette.errors import CorruptModel, UnsupportedArchitecture, UnsupportedFeature
from palmette.kernels.rope import RopeSpec
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.hf_config import model_config

SMOLLM: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
GEMMA3 = {**SMOLLM, "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 256, "sliding_window": 512}


def read(config: dict[str, Any], **changes: Any) -> ModelConfig:
    return model_config({**config, **changes}, "config.json")


def test_smollm() -> None:
    config = read(SMOLLM)
    assert (config.family, config.num_layers, config.head_dim, config.context_len) == ("llama", 30, 64, 8192)
    assert config.tie_embeddings
    assert config.windows == {None}
    assert config.layers[0].rope == RopeSpec(dim=64, theta=100000.0)
    assert config.score_scale == 1 / 8


def test_rope_of_transformers_4_and_5_reads_alike() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    old = read(SMOLLM, rope_theta=5e5, rope_scaling={**scaling, "rope_type": "llama3"})
    older = read(SMOLLM, rope_theta=5e5, rope_scaling={**scaling, "type": "llama3"})
    new = dict(SMOLLM, rope_parameters={**scaling, "rope_type": "llama3", "rope_theta": 5e5})
    del new["rope_theta"]
    assert old.layers == older.layers == model_config(new, "config.json").layers
    assert old.layers[0].rope.kind == "llama3"


def test_gemma3_of_transformers_4_has_two_ropes() -> None:
    config = read(
        GEMMA3,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=6,
        query_pre_attn_scalar=168,
    )
    assert [layer.window for layer in config.layers] == [512] * 5 + [None, 512]
    assert config.layers[0].rope == RopeSpec(dim=256, theta=1e4)
    assert config.layers[5].rope == RopeSpec(dim=256, theta=1e6, kind="linear", factor=8.0)
    assert config.score_scale == pytest.approx(168**-0.5)


def test_a_model_with_vision_gives_its_language_part() -> None:
    inner = {k: v for k, v in GEMMA3.items() if k != "model_type"}
    config = model_config({"model_type": "gemma3", "text_config": inner, "vision_config": {}}, "config.json")
    assert config.family == "gemma3"


def test_qwen_slides_only_where_it_says_so() -> None:
    qwen = {**SMOLLM, "model_type": "qwen2", "sliding_window": 4096, "max_window_layers": 20}
    assert read(qwen).windows == {None}
    windows = [layer.window for layer in read(qwen, use_sliding_window=True).layers]
    assert windows == [None] * 20 + [4096] * 10
    assert read(qwen).qkv_bias
    assert not read(qwen).out_bias


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", None, 7, "LlamaForCausalLM"])
def test_an_architecture_outside_the_table_is_refused(model_type: object) -> None:
    with pytest.raises(UnsupportedArchitecture, match="llama"):
        read(SMOLLM, model_type=model_type)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ],
)
def test_what_is_not_implemented_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature):
        read(SMOLLM, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": "576"},
        {"hidden_size": -1},
        {"vocab_size": True},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 0},
        {"num_key_value_heads": 2},
        {"head_dim": 63},
        {"max_position_embeddings": 1 << 30},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": "small"},
        {"rope_theta": []},
        {"rope_scaling": "linear"},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_parameters": 7},
    ],
)
def test_a_config_that_contradicts_itself_names_the_file(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel, match=r"config\.json"):
        read(SMOLLM, **changes)
