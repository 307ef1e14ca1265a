"""Token embedding: its definition against indexing, and Triton's against the definition."""

from __future__ import annotations

import pytest
import torch

from palmette.kernels import embedding as definition
from palmette.kernels.gpu.embedding import embed
from tests.kernels.gpu.close import DEVICE, assert_within_an_ulp, poisoned_empty


@pytest.mark.parametrize("scale", [1.0, 24.0416])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 80, 1100])
def test_known_and_drawn_tokens_are_rows_of_the_table(dim: int, dtype: torch.dtype, scale: float) -> None:
    table = torch.randn(13, dim, device=DEVICE).to(dtype)
    ids = torch.tensor([4, -1, 12, 0, -7], device=DEVICE)
    drawn = torch.tensor([1 << 30, 9, 1 << 30, 2], dtype=torch.int32, device=DEVICE)  # rows that nobody asks for
    rows = torch.tensor([0, 3, 0, 2, 1], device=DEVICE)
    wanted = table[[4, 2, 12, 0, 9]]
    if scale != 1.0:
        wanted = wanted * torch.tensor(scale, dtype=dtype)
    assert torch.equal(definition.embed(ids, table, scale=scale, drawn=drawn, rows=rows), wanted)
    with poisoned_empty():
        got = embed(ids, table, scale=scale, drawn=drawn, rows=rows)
    assert_within_an_ulp(got, wanted)
    if scale == 1.0:
        assert torch.equal(got, wanted)


def test_known_tokens_alone_need_no_more() -> None:
    table = torch.randn(5, 24, device=DEVICE)
    for dtype in (torch.int32, torch.int64):
        ids = torch.tensor([3, 3, 1], device=DEVICE, dtype=dtype)
        assert torch.equal(embed(ids, table), table[[3, 3, 1]])
        assert torch.equal(definition.embed(ids, table), table[[3, 3, 1]])


def test_no_tokens_are_no_launch() -> None:
    assert embed(torch.empty(0, dtype=torch.int64, device=DEVICE), torch.ones(3, 16, device=DEVICE)).shape == (0, 16)
