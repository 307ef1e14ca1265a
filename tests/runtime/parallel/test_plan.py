"""Where a model is cut: each element of each matrix is some rank's, once, and a block's inside never crosses ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.models.config import ExpertConfig, ModelConfig
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.models.weights import StoredBlocks, assemble
from palmette.runtime.parallel.plan import Side, dense_layers, head_part, local_config, make_plan
from palmette.runtime.parallel.shards import ShardedSource
from tests.runtime.parallel.split_models import shapes

SIZES = {name: (1, 2, 4) if config.num_kv_heads == 4 else (1, 2) for name, config in shapes().items()}
CASES = [(name, size) for name, sizes in SIZES.items() for size in sizes]


class Recorder:
    """A source of zeros that remembers what it was asked for."""

    def __init__(self) -> None:
        self.required: dict[str, tuple[int, ...]] = {}

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        self.required[name] = shape

    def blocks(self, name: str) -> StoredBlocks | None:
        return None

    def read_into(self, name: str, out: Tensor) -> None:
        assert self.required[name] == tuple(out.shape), f"{name} was required in another shape"
        out.zero_()


class Keeper(RandomSource):
    """Random weights that also keeps what it delivered."""

    def __init__(self) -> None:
        super().__init__(1)
        self.read: dict[str, Tensor] = {}

    def read_into(self, name: str, out: Tensor) -> None:
        super().read_into(name, out)
        self.read[name] = out.clone()


def required(config: ModelConfig, *, size: int, rank: int) -> dict[str, tuple[int, ...]]:
    recorder = Recorder()
    source = ShardedSource(recorder, make_plan(config, size), rank)
    assemble(local_config(config, size), source, dtype=torch.float32, device="cpu")
    return recorder.required


@pytest.mark.parametrize(("shape", "size"), CASES)
def test_every_rank_asks_the_file_for_the_tensors_of_the_whole_model(shape: str, size: int) -> None:
    config = shapes()[shape]
    recorder = Recorder()
    assemble(config, recorder, dtype=torch.float32, device="cpu")
    for rank in range(size):
        assert required(config, size=size, rank=rank) == recorder.required


@pytest.mark.parametrize(("shape", "size"), CASES)
def test_the_ranks_parts_make_up_each_tensor(shape: str, size: int) -> None:
    config = shapes()[shape]
    plan, keeper = make_plan(config, size), Keeper()
    assemble(config, keeper, dtype=torch.float32, device="cpu")
    num_cut = 0
    for name, whole in keeper.read.items():
        cut = plan.cut(name)
        parts: list[Tensor] = []
        for rank in range(size):
            local = list(whole.shape)
            if cut is not None:
                local[cut.axis] //= size
            parts.append(torch.empty(local))
            ShardedSource(RandomSource(1), plan, rank).read_into(name, parts[-1])
        if cut is None:
            assert all(torch.equal(part, whole) for part in parts), name
        else:
            assert torch.equal(torch.cat(parts, cut.axis), whole), name
            num_cut += 1
    num_mlps = [config.experts.num_experts if config.experts and x.is_sparse else 1 for x in config.layers]
    wanted = config.num_layers * (4 + 3 * config.qkv_bias + 2 * config.mlp_bias) + 3 * sum(num_mlps)
    assert num_cut == wanted


@pytest.mark.parametrize("shape", shapes())
def test_what_leads_into_a_block_is_cut_by_outputs_and_what_leads_back_by_inputs(shape: str) -> None:
    config = shapes()[shape]
    plan, layers = make_plan(config, 2), dense_layers(config)
    sizes = required(config, size=1, rank=0)
    assert {plan.cut(name) for name in sizes} == {None, *plan.cuts}
    for dense in layers:
        name = dense.name.replace("experts.", "experts.3.")
        index = next(i for i in range(config.num_layers) if f"layers.{i}.{name}" in sizes)
        cut = plan.cut(f"layers.{index}.{name}")
        assert cut is not None
        rows, columns = sizes[f"layers.{index}.{name}"]
        into = dense.side is Side.INTO_BLOCK
        assert (columns if into else rows) == config.hidden_size, "the other side is the residual stream"
        assert cut.axis == (-2 if into else -1)
        assert dense.units * dense.unit_size == (rows if into else columns)
        bias = plan.cut(f"layers.{index}.{name}.bias")
        assert (bias is not None) == (dense.bias and into)


def test_norms_embedding_and_biases_of_sums_are_whole() -> None:
    plan = make_plan(shapes()["biases"], 2)
    whole = ("embedding", "final_norm", "layers.0.attention_norm", "layers.0.q_norm", "layers.0.out.bias")
    assert all(plan.cut(name) is None for name in (*whole, "layers.0.down.bias", "layers.1.post_mlp_norm"))


@pytest.mark.parametrize("shape", shapes())
def test_a_ranks_query_heads_find_their_own_kv_heads(shape: str) -> None:
    config = shapes()[shape]
    group = config.num_heads // config.num_kv_heads
    for size in SIZES[shape]:
        plan = make_plan(config, size)
        q, k = plan.cut("layers.0.q"), plan.cut("layers.0.k")
        assert q is not None
        assert k is not None
        for rank in range(size):
            queries, keys = plan.part(q, rank), plan.part(k, rank)
            assert all(edge % config.head_dim == 0 for edge in (queries.start, queries.stop, keys.start, keys.stop))
            heads = range(queries.start // config.head_dim, queries.stop // config.head_dim)
            assert {h // group for h in heads} == set(
                range(keys.start // config.head_dim, keys.stop // config.head_dim)
            )
        local = local_config(config, size)
        assert local.num_heads // local.num_kv_heads == group
        assert local.score_scale == config.score_scale


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, 0),
        ({}, -2),
        ({}, 3),
        ({}, 4),  # two KV heads
        ({"num_heads": 9, "num_kv_heads": 3}, 3),  # an intermediate size of 64
        ({"num_heads": 6, "num_kv_heads": 3, "intermediate_size": 66}, 2),
        ({"intermediate_size": 63}, 2),
        ({"family": "qwen3_moe", "experts": ExpertConfig(8, 3, 31, normalise=True)}, 2),
    ],
)
def test_what_does_not_divide_is_refused(change: dict[str, Any], size: int) -> None:
    config = replace(tiny_config(change.get("family", "llama")), **change)
    with pytest.raises(InvalidOption, match=f"tensor_parallel={size} is not allowed: 1.*heads.*KV heads.*intermediate"):
        make_plan(config, size)


def test_a_router_is_whole_and_dense_sizes_do_not_matter_where_all_layers_are_sparse() -> None:
    config = replace(shapes()["mixtral"], intermediate_size=63)
    plan = make_plan(config, 2)
    assert plan.cut("layers.0.router") is None
    down = plan.cut("layers.0.experts.0.down")
    assert down is not None
    assert plan.cut("layers.1.experts.12.down") == down
    assert plan.cut("layers.1.down") is None


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 8, 9, 260, 50257])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_each_token_has_one_rank_that_computes_its_logit(vocab_size: int, size: int) -> None:
    parts = [head_part(vocab_size, size=size, rank=rank) for rank in range(size)]
    tokens = [token for part in parts for token in range(vocab_size)[part]]
    assert tokens == list(range(vocab_size))
    assert all(part.stop - part.start <= parts[0].stop for part in parts)


def test_a_refusal_says_what_would_do() -> None:
    config = replace(tiny_config(), num_heads=36, num_kv_heads=12, intermediate_size=144)
    with pytest.raises(InvalidOption, match=r"allowed: 1, 2, 3, 4, 6, 12: it must"):
        make_plan(config, 5)
    for size in (1, 2, 3, 4, 6, 12):
        assert make_plan(config, size).size == size
