"""Linear layer whose weights are 8-bit codes: y = x W^T + b with W = codes * scales.

    x (rows, in), codes (out, in) int8 or float8 e4m3  ->  y (rows, out)
    scales (out,) float32                 one for each output, or
    scales (out, in / 128) float32        one for each output and block of 128 inputs

Decoding reads every weight once for few rows, so a step takes as long as its weights are wide. Activations keep their
dtype: nothing of one row enters another's result. W is rounded to the nearest code (Jacob et al. 2018, arXiv
1712.05877, section 2.1, with zero as the zero point).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.kernels.kv_store import LARGEST, quantize_rows

BLOCK = 128  # inputs that share a scale, where there are several for an output


def quantize_weight(weight: Tensor, dtype: torch.dtype, *, blocks: bool = False) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight.

    Args:
        weight: (out, in), any float dtype.
        dtype: torch.int8 or torch.float8_e4m3fn.
        blocks: a scale for each block of BLOCK inputs; else one for each output.

    Raises:
        InvalidOption: another dtype; or the inputs are no multiple of BLOCK, with `blocks`.
    """
    if dtype not in LARGEST:
        raise InvalidOption("dtype", dtype, "torch.int8 or torch.float8_e4m3fn")
    if not blocks:
        return quantize_rows(weight, dtype)
    outputs, inputs = weight.shape
    if inputs % BLOCK:
        raise InvalidOption("blocks", blocks, f"only for a multiple of {BLOCK} inputs, not {inputs}: use blocks=False")
    codes, scales = quantize_rows(weight.view(outputs, inputs // BLOCK, BLOCK), dtype)
    return codes.view(outputs, inputs), scales


def dequantize_weight(codes: Tensor, scales: Tensor) -> Tensor:
    """(out, in) float32."""
    if scales.dim() == 1:
        return codes.float() * scales[:, None]
    return (codes.float().view(*scales.shape, BLOCK) * scales[..., None]).view(codes.shape)


def quant_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's output in x's dtype, computed in float32. x has two dimensions, bias (out,) any float dtype."""
    y = F.linear(x.float(), dequantize_weight(codes, scales), None if bias is None else bias.float())
    return y.to(x.dtype)
