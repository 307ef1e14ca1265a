"""The page table after a step's updates: exactly those that count."""

from __future__ import annotations

import pytest
import torch

from palmette.kernels import page_table as definition
from palmette.kernels.gpu.page_table import update
from tests.kernels.gpu.close import DEVICE


@pytest.mark.parametrize("count", [0, 1, 130, 200])
def test_exactly_the_first_updates_are_written(count: int) -> None:
    torch.manual_seed(count)
    cells = torch.randperm(7 * 50)[:200]
    updates = torch.stack((cells // 50, cells % 50, torch.randint(0, 1 << 30, (200,))), dim=1).int().to(DEVICE)
    updates[count:] = (1 << 31) - 1  # what stands behind the count is anything
    tables = [torch.full((7, 50), -5, dtype=torch.int32, device=DEVICE) for _ in range(3)]
    for cell, (_, _, slot) in zip(cells[:count].tolist(), updates.tolist(), strict=False):
        tables[0][cell // 50, cell % 50] = slot
    how_many = torch.tensor([count], dtype=torch.int32, device=DEVICE)
    definition.update(tables[1], updates, how_many)
    update(tables[2], updates, how_many)
    assert torch.equal(tables[1], tables[0])
    assert torch.equal(tables[2], tables[0])


def test_a_table_may_be_a_part_of_a_wider_one() -> None:
    wide = torch.zeros(4, 20, dtype=torch.int32, device=DEVICE)
    updates = torch.tensor([[3, 9, 5], [0, 0, 6]], dtype=torch.int32, device=DEVICE)
    update(wide[:, :10], updates, torch.tensor([2], dtype=torch.int32, device=DEVICE))
    assert wide.nonzero().tolist() == [[0, 0], [3, 9]]
    assert (int(wide[3, 9]), int(wide[0, 0])) == (5, 6)


def test_no_capacity_is_no_launch() -> None:
    table = torch.ones(2, 2, dtype=torch.int32, device=DEVICE)
    update(table, torch.empty(0, 3, dtype=torch.int32, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE))
    assert table.all()
