"""Products of bfloat16 operands at sizes that fill tiles: on a GPU, and else listed as not run.

Triton's interpreter multiplies the operands' bit patterns, so everywhere else in these tests products are float32
where it runs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from palmette.kernels.gpu import moe
from palmette.kernels.gpu.quant_linear import quant_linear, skinny_linear
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.moe import moe as define_moe
from palmette.kernels.paged_attention import attend_by_definition
from palmette.kernels.quant_linear import dequantize_weight, quantize_weight
from tests.kernels.gpu.close import DEVICE
from tests.kernels.gpu.paged_cases import Row, make_case

BF16 = torch.bfloat16


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(BF16)


def attention(rows: int) -> tuple[Tensor, Tensor]:
    siblings = [Row(prefix=300), *(Row(prefix=300, like=0, shared=256) for _ in range(rows - 1))]
    case = make_case(
        siblings, num_heads=8, num_kv_heads=2, head_dim=128, dtype=BF16, cut=256, block_ms=(16,) if rows == 1 else (64,)
    )
    got = TritonKernels().attend(case.q, case.kv, case.plan, scale=0.1)
    return got, attend_by_definition(case.q, case.kv, case.plan, scale=0.1)


def linear(rows: int) -> tuple[Tensor, Tensor]:
    x, weight = normal(rows, 512), normal(768, 512)
    return skinny_linear(x, weight), F.linear(x.double(), weight.double())


def coded(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, (codes, scales) = normal(5, 512), quantize_weight(normal(768, 512), dtype)
    return quant_linear(x, codes, scales), F.linear(x.double(), dequantize_weight(codes, scales).double())


def experts(rows: int) -> tuple[Tensor, Tensor]:
    x, router, gate_up, down = normal(rows, 256), normal(16, 256), normal(16, 256, 256), normal(16, 256, 128)
    logits = F.linear(x, router)
    wanted = define_moe(x.float(), logits, gate_up.float(), down.float(), top_k=4, normalise=True)
    return moe.moe(x, logits, gate_up, down, top_k=4, normalise=True), wanted


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "split attention, one row": lambda: attention(1),
    "split attention, siblings": lambda: attention(24),
    "linear, 3 rows": lambda: linear(3),
    "linear, 40 rows": lambda: linear(40),
    "int8 linear": lambda: coded(torch.int8),
    "float8 linear": lambda: coded(torch.float8_e4m3fn),
    "experts, 3 rows": lambda: experts(3),
    "experts, 200 rows": lambda: experts(200),
}


@pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU: the interpreter does not multiply bfloat16")
@pytest.mark.parametrize("name", CASES)
def test_a_product_of_bfloat16_operands_is_right(name: str) -> None:
    torch.manual_seed(0)
    got, wanted = CASES[name]()
    error = (got.double() - wanted.double()).norm() / wanted.double().norm()
    assert float(error) < 1.5e-2
