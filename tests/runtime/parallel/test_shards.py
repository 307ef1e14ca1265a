"""One rank's share: parts of tensors however a source reads them, and products that round once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from palmette.kernels.step_kernels import Activation, StepKernels, TorchKernels
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.layers import DenseMlp, LayerWeights, Linear
from palmette.runtime.models.tiny import RandomSource
from palmette.runtime.models.weights import assemble
from palmette.runtime.parallel.group import InOne
from palmette.runtime.parallel.plan import make_plan
from palmette.runtime.parallel.shards import (
    PartSource,
    ReducedLinear,
    ReducedMlp,
    ShardedSource,
    load_shard,
    partial_product,
    reduced,
)
from tests.runtime.parallel.split_models import shapes, whole_decoder


class Partial(RandomSource):
    """Reads parts by themselves, and counts the elements that it read."""

    def __init__(self) -> None:
        super().__init__(1)
        self.num_read = 0

    def read_into(self, name: str, out: Tensor) -> None:
        super().read_into(name, out)
        self.num_read += out.numel()

    def read_part_into(self, name: str, axis: int, part: slice, out: Tensor) -> None:
        shape = list(out.shape)
        shape[axis] *= 2
        whole = torch.empty(shape)
        super().read_into(name, whole)
        out.copy_(whole.narrow(axis, part.start, part.stop - part.start))
        self.num_read += out.numel()


def test_a_source_that_can_is_asked_for_parts_alone() -> None:
    config = shapes()["biases"]
    source = Partial()
    assert isinstance(source, PartSource)
    assert not isinstance(RandomSource(1), PartSource)
    for member in InOne(2).members:
        source.num_read = 0
        by_parts = load_shard(config, source, member, dtype=torch.float32, device="cpu")
        assert source.num_read == by_parts.weights.num_parameters + config.vocab_size // 2 * config.hidden_size
        by_wholes = load_shard(config, RandomSource(1), member, dtype=torch.float32, device="cpu")
        pairs = zip(by_parts.weights.tensors(), by_wholes.weights.tensors(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_shards_tensors_are_never_the_files_blocks() -> None:
    source = ShardedSource(RandomSource(1), make_plan(shapes()["llama"], 2), 0)
    assert source.blocks("layers.0.q") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_product_rounds_once_like_a_whole_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 64).to(dtype), torch.randn(48, 64).to(dtype), torch.randn(48).to(dtype)
    group = InOne(4)

    def rank(r: int) -> Tensor:
        part = slice(16 * r, 16 * r + 16)
        return ReducedLinear(weight[:, part].contiguous(), bias, group.members[r])(x[:, part].contiguous())

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(rank, range(4)))
    exact = x.double() @ weight.double().T + bias.double()
    assert all(torch.equal(y, found[0]) for y in found)
    assert found[0].dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(found[0].double(), exact, rtol=0, atol=1e-5)
    else:  # the nearest bfloat16, but for a sum that fell next to the middle of two
        step = 2.0 ** (exact.abs().log2().floor() - 7)
        assert ((found[0].double() - exact).abs() <= 0.5 * step + 1e-5).all()


def test_partial_products_are_not_rounded_to_the_models_dtype() -> None:
    x, weight = torch.full((1, 2), 1.0).bfloat16(), torch.tensor([[1.0, 2.0**-9]]).bfloat16()
    product = partial_product(x, weight)
    assert product.dtype == torch.float32
    assert product.item() == 1.0 + 2.0**-9


@pytest.mark.parametrize(("shape", "vocab_size"), [("llama", 260), ("llama", 261), ("gemma2", 262), ("gemma2", 263)])
def test_a_heads_rows_are_divided_and_its_logits_gathered(shape: str, vocab_size: int) -> None:
    config = replace(shapes()[shape], vocab_size=vocab_size, num_kv_heads=4)
    whole = Decoder(config, assemble(config, RandomSource(1), dtype=torch.float32, device="cpu"))
    shards = [load_shard(config, RandomSource(1), m, dtype=torch.float32, device="cpu") for m in InOne(4).members]
    assert torch.equal(torch.cat([shard.weights.head for shard in shards]), whole.weights.head)
    for shard in shards:
        mine, embedding = shard.weights.head, shard.weights.embedding.untyped_storage()
        if config.tie_embeddings:
            assert mine.untyped_storage().data_ptr() == embedding.data_ptr(), "a tied head takes no memory"
        else:
            assert mine.untyped_storage().nbytes() == 4 * mine.numel(), "only the part is kept"
    hidden = torch.randn(5, config.hidden_size)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda shard: shard.logits(hidden), shards))
    for logits in found:
        assert torch.equal(logits, found[0])
        torch.testing.assert_close(logits, whole.logits(hidden), rtol=0, atol=1e-5)
        assert logits.is_contiguous()
    assert shards[3].logits(hidden[:0]).shape == (0, vocab_size)


def test_a_shard_has_a_part_of_each_matrix() -> None:
    shards = [
        load_shard(shapes()["llama"], RandomSource(1), m, dtype=torch.float32, device="cpu") for m in InOne(2).members
    ]
    whole = _num_elements(whole_decoder("llama").weights.layers[0])
    assert [_num_elements(shard.weights.layers[0]) for shard in shards] == [whole // 2, whole // 2]


class Halves:
    """An Mlp that knows nothing of its parts: experts, say."""

    def __init__(self, inner: DenseMlp) -> None:
        self._inner = inner

    def __call__(self, x: Tensor, kernels: StepKernels, activation: Activation) -> Tensor:
        return self._inner(x, kernels, activation)

    def tensors(self) -> list[Tensor]:
        return self._inner.tensors()


def test_an_mlp_of_another_kind_is_summed_behind_it() -> None:
    config = shapes()["llama"]
    group, x = InOne(2), torch.randn(5, config.hidden_size)
    layers: list[LayerWeights] = []
    for member in group.members:
        shard = load_shard(config, RandomSource(1), member, dtype=torch.float32, device="cpu").weights
        plain = shard.layers[0]
        assert isinstance(plain.mlp, DenseMlp)
        down, out = plain.mlp.down, plain.out
        assert isinstance(down, ReducedLinear)
        assert isinstance(out, ReducedLinear)
        # the parts as they were assembled, with experts in place of the MLP
        mlp = Halves(DenseMlp(plain.mlp.gate_up, Linear(down.weight)))
        before = LayerWeights(plain.attention_norm, plain.qkv, Linear(out.weight), plain.mlp_norm, mlp)
        weights = reduced(type(shard)(shard.embedding, (before,), shard.final_norm, shard.head), member)
        layers.append(weights.layers[0])
    assert all(isinstance(layer.mlp, ReducedMlp) for layer in layers)
    assert len(layers[0].mlp.tensors()) == 2
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda layer: layer.mlp(x, TorchKernels(), "silu"), layers))
    whole = whole_decoder("llama").weights.layers[0].mlp(x, TorchKernels(), "silu")
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], whole, rtol=0, atol=1e-5)


def _num_elements(layer: LayerWeights) -> int:
    return sum(t.numel() for t in layer.tensors() if t.dim() == 2)
