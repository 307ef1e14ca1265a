"""Projections held as 8-bit codes: half the bytes of bfloat16 to read for every step of decoding.

    kind     codes           a weight is rounded to
    int8     int8            256 equal steps of the largest weight of its output
    fp8      float8 e4m3     three bits behind its leading one

What attention and MLPs multiply with is quantised. The embedding, the head and the norms stay: tokens' logits are
differences of close numbers. Knows weights. Does not know batches, nor where weights come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from palmette.errors import InvalidOption, UnsupportedFeature
from palmette.kernels.quant_linear import quant_linear, quantize_weight
from palmette.runtime.models.layers import DecoderWeights, DenseMlp, LayerWeights, Linear, Projection

Kind = Literal["int8", "fp8"]
Multiply = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """y = x W^T + b with W = codes * scales; see kernels.quant_linear for their shapes."""

    codes: Tensor  # (out_features, in_features) int8 or float8_e4m3fn
    scales: Tensor  # (out_features,) or (out_features, in_features / 128) float32
    bias: Tensor | None = None  # (out_features,)
    multiply: Multiply = quant_linear  # the definition, or its kernel

    def __call__(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.codes, self.scales, self.bias)

    def tensors(self) -> list[Tensor]:
        return [self.codes, self.scales] if self.bias is None else [self.codes, self.scales, self.bias]


def quantize_linear(
    linear: Linear, kind: Kind, *, blocks: bool = False, with_triton: bool | None = None
) -> QuantizedLinear:
    """A linear layer with its weight rounded to codes.

    Args:
        blocks: a scale for every 128 inputs of an output; else one for each output.
        with_triton: computed by the Triton kernel; by torch; None: by the kernel where the weight is on a GPU.

    Raises:
        InvalidOption: no such kind; or `blocks` and the inputs are no multiple of 128.
    """
    if kind not in _DTYPES:
        raise InvalidOption("kind", kind, " or ".join(map(repr, get_args(Kind))))
    codes, scales = quantize_weight(linear.weight, _DTYPES[kind], blocks=blocks)
    on_gpu = linear.weight.device.type == "cuda"
    return QuantizedLinear(
        codes, scales, linear.bias, _kernel() if with_triton or (with_triton is None and on_gpu) else quant_linear
    )


def quantize_weights(
    weights: DecoderWeights, kind: Kind, *, blocks: bool = False, with_triton: bool | None = None
) -> DecoderWeights:
    """A model whose attention and dense MLPs hold codes; shares every other tensor with `weights`. Experts stay.

    Raises:
        InvalidOption: from quantize_linear.
        UnsupportedFeature: a projection is no plain matrix: it is quantised already, or split over processes.
    """

    def quantized(projection: Projection) -> QuantizedLinear:
        if not isinstance(projection, Linear):
            raise UnsupportedFeature(
                f"quantising a {type(projection).__name__}", "only plain matrices are: quantise before anything else"
            )
        return quantize_linear(projection, kind, blocks=blocks, with_triton=with_triton)

    def layer(old: LayerWeights) -> LayerWeights:
        mlp = old.mlp
        if isinstance(mlp, DenseMlp):
            mlp = DenseMlp(quantized(mlp.gate_up), quantized(mlp.down))
        return replace(old, qkv=quantized(old.qkv), out=quantized(old.out), mlp=mlp)

    return replace(weights, layers=tuple(layer(old) for old in weights.layers))


def _kernel() -> Multiply:
    from palmette.kernels.gpu import quant_linear as kernel  # imports triton, which only GPUs need

    return kernel.quant_linear
