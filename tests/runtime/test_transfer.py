"""Copies between host and device; on the CPU, where there is nothing to copy."""

from __future__ import annotations

import pytest
import torch

from palmette.runtime.transfer import on_host, take_rows


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 2], [3], [0, 2], [2, 1], [3, 0, 1, 2], []], ids=str)
def test_rows_are_taken_in_order(rows: list[int]) -> None:
    tensor = torch.arange(12).reshape(4, 3)
    assert torch.equal(take_rows(tensor, rows), tensor[rows])


def test_adjacent_rows_are_not_copied() -> None:
    tensor = torch.zeros(4, 3)
    assert take_rows(tensor, [0, 1, 2, 3]) is tensor
    take_rows(tensor, [1, 2])[0, 0] = 1.0
    assert tensor[1, 0] == 1.0
    take_rows(tensor, [1, 3])[0, 0] = 2.0
    assert tensor[1, 0] == 1.0


def test_what_is_on_the_host_is_there() -> None:
    tensor = torch.ones(3)
    assert on_host(tensor).get() is tensor
