"""Models with experts: what a config and a file may say of them, and their tokens through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from palmette.errors import CorruptModel, InvalidOption, UnsupportedFeature
from palmette.kernels import moe
from palmette.kernels.step_kernels import TorchKernels
from palmette.native import NotBuilt, is_wanted
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.compiled import why_not_compiled
from palmette.runtime.models.config import SPARSE_FAMILIES, ExpertConfig, ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.experts import ExpertMlp
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.hf_config import model_config
from palmette.runtime.models.hf_model import open_directory
from palmette.runtime.models.layers import DenseMlp
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_config, tiny_model
from palmette.runtime.models.weights import assemble
from tests.runtime import test_model_runner as shared
from tests.runtime.driving import drive, engine, generate
from tests.runtime.models.checkpoints import configs, our_logits, random_model, reference_logits, write_gguf

# -- config.json -------------------------------------------------------------------------------------------------------

QWEN3_30B: dict[str, Any] = {  # as published: the keys of transformers 4
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def read(config: dict[str, Any], **changes: Any) -> ModelConfig:
    return model_config({**config, **changes}, "config.json")


def sparse(config: ModelConfig) -> list[int]:
    return [i for i, layer in enumerate(config.layers) if layer.is_sparse]


def test_qwen3_30b_a3b() -> None:
    config = read(QWEN3_30B)
    assert config.experts == ExpertConfig(num_experts=128, top_k=8, intermediate_size=768, normalise=True)
    assert sparse(config) == list(range(48))
    assert config.family == "qwen3_moe"
    assert config.head_dim == 128
    assert config.qk_norm
    assert config.windows == {None}
    assert config.layers[0].rope.theta == 1e6


def test_mixtral_8x7b() -> None:
    config = read(MIXTRAL_8X7B)
    assert config.experts == ExpertConfig(num_experts=8, top_k=2, intermediate_size=14336, normalise=True)
    assert sparse(config) == list(range(32))
    assert not config.qk_norm
    assert config.windows == {None}
    assert config.norm_eps == 1e-5


def test_both_generations_of_transformers_name_the_experts() -> None:
    new = {k: v for k, v in QWEN3_30B.items() if k != "num_experts"}
    assert read(new, num_local_experts=128) == read(QWEN3_30B)


def test_what_a_config_leaves_out_is_its_classs_default() -> None:
    for config in (QWEN3_30B, MIXTRAL_8X7B):
        left_out = {
            "num_experts",
            "num_local_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "sliding_window",
        }
        least = {k: v for k, v in config.items() if k not in left_out | {"rms_norm_eps", "num_key_value_heads"}}
        assert read(least) == read(config)
    assert read({k: v for k, v in MIXTRAL_8X7B.items() if k != "rope_theta"}) == read(MIXTRAL_8X7B)
    experts = read({k: v for k, v in QWEN3_30B.items() if k != "norm_topk_prob"}).experts
    assert experts is not None
    assert not experts.normalise


def test_layers_between_the_sparse_ones_are_dense() -> None:
    config = read(QWEN3_30B, num_hidden_layers=8, decoder_sparse_step=2, mlp_only_layers=[3])
    assert sparse(config) == [1, 5, 7]
    assert read(QWEN3_30B, mlp_only_layers=list(range(48))).experts is None


@pytest.mark.parametrize("config", [QWEN3_30B, MIXTRAL_8X7B], ids=["qwen3_moe", "mixtral"])
@pytest.mark.parametrize(
    "changes",
    [
        {"n_shared_experts": 1},
        {"shared_expert_intermediate_size": 512},
        {"scoring_func": "sigmoid"},
        {"n_group": 8},
        {"routed_scaling_factor": 2.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_routers_are_refused(changes: dict[str, Any], config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature, match=next(iter(changes))):
        read(config, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 0},
        {"num_experts": 1 << 30},
        {"num_experts_per_tok": 129},
        {"num_experts_per_tok": 0},
        {"moe_intermediate_size": -1},
        {"decoder_sparse_step": 0},
        {"mlp_only_layers": 3},
    ],
)
def test_a_config_that_contradicts_itself_names_the_file(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel, match=r"config\.json"):
        read(QWEN3_30B, **changes)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_experts": 9}, "mlp.gate.weight"),
        ({"num_experts": 7}, "mlp.gate.weight"),
        ({"intermediate_size": 16}, "experts"),
        ({"dense": [2]}, "layers.2.mlp.gate_proj.weight' is missing"),
    ],
)
@pytest.mark.parametrize("original_format", [True, False])
def test_a_checkpoint_whose_experts_are_others_is_corrupt(
    changes: dict[str, Any], reason: str, original_format: bool, tmp_path: Path
) -> None:
    random_model(configs()["qwen3_moe"]).save_pretrained(tmp_path, save_original_format=original_format)
    config, source = open_directory(tmp_path)
    experts = config.experts
    assert experts is not None
    if "dense" in changes:
        layers = tuple(replace(layer, is_sparse=i not in changes["dense"]) for i, layer in enumerate(config.layers))
        config = replace(config, layers=layers)
    else:
        config = replace(config, experts=replace(experts, **changes))
    with pytest.raises(CorruptModel, match=reason):
        assemble(config, source, dtype=torch.float32, device="cpu")


def test_an_expert_that_is_not_finite_is_corrupt(tmp_path: Path) -> None:
    model = random_model(configs()["mixtral"])
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3, 4, 5] = float("nan")
    model.save_pretrained(tmp_path)
    config, source = open_directory(tmp_path)
    with pytest.raises(CorruptModel, match=r"layers\.1\.block_sparse_moe\.experts\.3\.w2.*not finite"):
        assemble(config, source, dtype=torch.float32, device="cpu")


def write_changed(path: Path, architecture: str, name: str, change: Callable[[gguf.GGUFWriter], None]) -> GGUFFile:
    """A GGUF file with further metadata."""
    original = gguf.GGUFWriter.add_vocab_size

    def add(writer: gguf.GGUFWriter, size: int) -> None:
        original(writer, size)
        change(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_vocab_size", add)
        write_gguf(random_model(configs()[name]), path, architecture)
    return GGUFFile(path)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("expert_shared_count", lambda w: w.add_expert_shared_count(1)),
        ("expert_gating_func", lambda w: w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)),
        ("expert_weights_scale", lambda w: w.add_expert_weights_scale(2.5)),
        ("expert_group_count", lambda w: w.add_expert_group_count(8)),
    ],
)
def test_other_routers_of_a_gguf_file_are_refused(
    key: str, change: Callable[[gguf.GGUFWriter], None], tmp_path: Path
) -> None:
    file = write_changed(tmp_path / "m.gguf", "qwen3moe", "qwen3_moe", change)
    with pytest.raises(UnsupportedFeature, match=key):
        gguf_config(file)


def test_a_gguf_file_says_what_its_experts_are(tmp_path: Path) -> None:
    def plain(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_weights_norm(False)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)

    config = gguf_config(write_changed(tmp_path / "q.gguf", "qwen3moe", "qwen3_moe", plain))
    assert config.experts == ExpertConfig(num_experts=8, top_k=3, intermediate_size=32, normalise=False)
    write_gguf(random_model(configs()["mixtral"]), tmp_path / "m.gguf", "llama")
    config = gguf_config(GGUFFile(tmp_path / "m.gguf"))
    assert config.family == "mixtral"
    assert config.experts == ExpertConfig(num_experts=5, top_k=2, intermediate_size=96, normalise=True)


def test_experts_in_blocks_compute_with_the_dequantised_weights(tmp_path: Path) -> None:
    kind, ids = gguf.GGMLQuantizationType.Q8_0, tuple(range(60))
    model = random_model(configs()["qwen3_moe"])
    write_gguf(model, tmp_path / "m.gguf", "qwen3moe", kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                blocks = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    file = GGUFFile(tmp_path / "m.gguf")
    config = gguf_config(file)
    ours = Decoder(config, assemble(config, GGUFSource(file, config), dtype=torch.float32, device="cpu"))
    torch.testing.assert_close(our_logits(ours, ids), reference_logits(model, ids), rtol=0, atol=1e-4)


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_engine_writes_what_transformers_writes(name: str, tmp_path: Path) -> None:
    """Greedy; requests in one batch, of which two share a prefix."""
    tokenizer = ByteTokenizer()
    config = configs()[name]
    config.vocab_size = tokenizer.vocab_size
    model = random_model(config)
    model.save_pretrained(tmp_path)
    ours, source = open_directory(tmp_path)
    decoder = Decoder(ours, assemble(ours, source, dtype=torch.float32, device="cpu"))
    loaded = LoadedModel(ours, decoder, tokenizer, "0" * 32, name)
    prompts = ["Once upon a time", "Once upon a hill", "x"]
    run = drive(engine(loaded), [generate(prompt, prompt, 12) for prompt in prompts])
    for prompt in prompts:
        ids = list(prompt.encode())
        for got in run.sampled(prompt):
            logits = reference_logits(model, tuple(ids))[-1]
            best = logits.topk(2)
            assert best.values[0] - best.values[1] > 1e-4, "a near-tie says nothing: choose another prompt"
            assert got == int(best.indices[0])
            ids.append(got)


@pytest.mark.parametrize(
    "test",
    [
        shared.test_chunked_extend_and_decode_equal_one_prefill,
        shared.test_rows_of_a_mixed_batch_equal_each_alone,
        shared.test_siblings_that_share_a_prefix_equal_each_alone,
        lambda family: shared.test_a_trie_scores_like_each_of_its_paths_alone(family, (1, 13, 16)),
    ],
    ids=["chunks", "mixed", "siblings", "trie"],
)
@pytest.mark.parametrize("family", SPARSE_FAMILIES)
def test_logits_are_the_same_in_every_schedule(test: Callable[[str], None], family: str) -> None:
    test(family)


def test_a_tiny_model_has_experts_where_its_config_says() -> None:
    layers = tiny_model(0, "qwen3_moe").decoder.weights.layers
    assert [type(layer.mlp) for layer in layers] == [DenseMlp, ExpertMlp]
    assert len({tiny_model(0, family).digest for family in ("llama", "qwen3", *SPARSE_FAMILIES)}) == 4


def test_who_computes_computes_the_experts_too() -> None:
    mlp = tiny_model(0, "mixtral").decoder.weights.layers[0].mlp
    x = torch.randn((3, 32), generator=torch.Generator().manual_seed(0))
    assert isinstance(mlp, ExpertMlp)

    class Doubled(TorchKernels):
        def experts(self, *args: Tensor, **options: Any) -> Tensor:
            return 2 * moe.experts(*args, **options)

    plain = moe.experts(x, mlp.router, mlp.gate_up, mlp.down, top_k=2, normalise=True)
    assert torch.equal(mlp(x, TorchKernels(), "silu"), plain)
    assert torch.equal(mlp(x, Doubled(), "silu"), 2 * plain)


@pytest.mark.parametrize("family", SPARSE_FAMILIES)
def test_the_compiled_core_leaves_experts_to_torch_and_says_so(family: str) -> None:
    assert "experts" in (why_not_compiled(tiny_config(family)) or "")
    with pytest.raises((InvalidOption, NotBuilt), match="experts" if is_wanted() else "PALMETTE_NATIVE"):
        tiny_model(0, family, cpu_kernels="portable")
