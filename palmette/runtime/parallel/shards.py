"""One rank's share of a decoder: its part of every tensor, and projections whose result is a sum over ranks.

    y = round(sum over ranks of x_r W_r^T, in float32, in the order of ranks, + b)

Partial products stay in float32 until they are added, so a split model rounds as often as a whole one. Knows the plan
and the group; does not know what a source reads from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from palmette.kernels.linear import linear
from palmette.kernels.soft_cap import soft_cap_
from palmette.kernels.step_kernels import Activation, StepKernels
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, LayerWeights, Linear, Mlp, Projection
from palmette.runtime.models.weights import StoredBlocks, WeightSource, assemble
from palmette.runtime.parallel.group import Group
from palmette.runtime.parallel.plan import Plan, head_part, local_config, make_plan


@runtime_checkable
class PartSource(Protocol):
    """A source that can read a part of a tensor without the rest of it."""

    def read_part_into(self, name: str, axis: int, part: slice, out: Tensor) -> None:
        """As `WeightSource.read_into`, of what lies at `part` along `axis`, which counts from the end."""
        ...


class ShardedSource:
    """A WeightSource whose tensors are one rank's parts of another's. Whoever reads it asks for the local shapes."""

    def __init__(self, source: WeightSource, plan: Plan, rank: int) -> None:
        self._source, self._plan, self._rank = source, plan, rank

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        self._source.require(name, self._whole(name, shape))

    def read_into(self, name: str, out: Tensor) -> None:
        cut = self._plan.cut(name)
        if cut is None:
            self._source.read_into(name, out)
            return
        part = self._plan.part(cut, self._rank)
        if isinstance(self._source, PartSource):
            self._source.read_part_into(name, cut.axis, part, out)
            return
        whole = torch.empty(self._whole(name, tuple(out.shape)), dtype=out.dtype)
        self._source.read_into(name, whole)
        out.copy_(whole.movedim(cut.axis, 0)[part].movedim(0, cut.axis))

    def blocks(self, name: str) -> StoredBlocks | None:
        return None  # a part of a row of blocks need not end where a block does: parts are read as floats

    def _whole(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        cut = self._plan.cut(name)
        if cut is None:
            return shape
        whole = list(shape)
        whole[cut.axis] *= self._plan.size
        return tuple(whole)


@dataclass(frozen=True, slots=True)
class ReducedLinear:
    """A linear layer cut by input features: (rows, in / size) -> (rows, out), the same on every rank."""

    weight: Tensor  # (out, in / size)
    bias: Tensor | None  # (out,), whole on every rank
    group: Group

    def __call__(self, x: Tensor) -> Tensor:
        y = self.group.all_reduce(partial_product(x, self.weight))
        if self.bias is not None:
            y += self.bias  # in float32, before the one rounding
        return y.to(x.dtype)

    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


@dataclass(frozen=True, slots=True)
class ReducedMlp:
    """An MLP of which this rank has a part, where only what comes out of it can be added: experts. Each rank's share
    is rounded to the model's dtype before."""

    inner: Mlp
    group: Group

    def __call__(self, x: Tensor, kernels: StepKernels, activation: Activation) -> Tensor:
        return self.group.all_reduce(self.inner(x, kernels, activation).float()).to(x.dtype)

    def tensors(self) -> list[Tensor]:
        return self.inner.tensors()


class ShardDecoder(Decoder):
    """A rank's part of a decoder. Its step and its logits are collective calls: all ranks run theirs on one batch."""

    def __init__(
        self, config: ModelConfig, weights: DecoderWeights, group: Group, kernels: StepKernels | None = None
    ) -> None:
        """
        Args:
            weights: whose head has this rank's rows alone.
        """
        super().__init__(config, weights, kernels)
        self._group = group

    def logits(self, hidden: Tensor) -> Tensor:
        """As Decoder.logits, of all tokens."""
        vocab_size, soft_cap = self.config.vocab_size, self.config.logit_soft_cap
        if hidden.shape[0] == 0:
            return torch.empty((0, vocab_size), dtype=torch.float32, device=hidden.device)
        mine = linear(hidden, self.weights.head)
        rows = head_part(vocab_size, size=self._group.size, rank=0).stop
        if mine.shape[1] < rows:
            mine = F.pad(mine, (0, rows - mine.shape[1]))
        logits = torch.cat(self._group.gather(mine), 1)[:, :vocab_size].float().contiguous()
        return logits if soft_cap is None else soft_cap_(logits, soft_cap)


def partial_product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in float32: the matrix units add in float32 anyway, and what they add is not rounded."""
    if x.dtype == torch.float32:
        return linear(x, weight)
    if x.device.type == "cuda":
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return linear(x.float(), weight.float())


def load_shard(
    config: ModelConfig,
    source: WeightSource,
    group: Group,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    kernels: StepKernels | None = None,
) -> Decoder:
    """This rank's decoder.

    Args:
        kernels: who computes; torch when None.

    Raises:
        InvalidOption: the model cannot be cut into group.size parts.
        CorruptModel: from the source.
    """
    plan = make_plan(config, group.size)
    mine = local_config(config, group.size)
    weights = assemble(mine, ShardedSource(source, plan, group.rank), dtype=dtype, device=device)
    head = weights.head[head_part(config.vocab_size, size=group.size, rank=group.rank)]
    if not config.tie_embeddings:
        head = head.clone()  # and the rest of it is freed
    return ShardDecoder(mine, replace(reduced(weights, group), head=head), group, kernels)


def reduced(weights: DecoderWeights, group: Group) -> DecoderWeights:
    """The same weights, where what leads back to the residual stream is summed over ranks."""
    return replace(weights, layers=tuple(_layer(layer, group) for layer in weights.layers))


def _layer(layer: LayerWeights, group: Group) -> LayerWeights:
    mlp = layer.mlp
    if isinstance(mlp, DenseMlp):
        return replace(layer, out=_reduced(layer.out, group), mlp=replace(mlp, down=_reduced(mlp.down, group)))
    return replace(layer, out=_reduced(layer.out, group), mlp=ReducedMlp(mlp, group))


def _reduced(projection: Projection, group: Group) -> Projection:
    assert isinstance(projection, Linear), "a shard is assembled from floats"
    return ReducedLinear(projection.weight, projection.bias, group)
