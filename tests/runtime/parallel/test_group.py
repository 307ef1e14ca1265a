"""Sums over ranks: in the order of ranks, whoever comes first, in one process as over sockets."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from palmette.runtime.parallel.group import Gloo, Group, InOne, LostRanks

T = TypeVar("T")


def on_all(groups: Sequence[Group], call: Callable[[Group], T]) -> list[T]:
    """By rank."""
    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(call, groups))


def gloo(folder: Path, size: int, timeout: float = 30.0) -> list[Group]:
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: Gloo(folder / "meeting", rank, size, timeout=timeout), range(size)))


def make(kind: str, folder: Path, size: int) -> Sequence[Group]:
    return InOne(size).members if kind == "in one" else gloo(folder, size)


@pytest.fixture(params=["in one", "gloo"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_sum_is_added_in_the_order_of_ranks(kind: str, tmp_path: Path) -> None:
    values = (1e8, 1.0, -1e8)  # ((a + b) + c) is 0 in float32, and 1 where b comes last
    for i, order in enumerate(itertools.permutations(values)):
        (tmp_path / str(i)).mkdir()
        groups = make(kind, tmp_path / str(i), 3)
        wanted = (torch.tensor(order[0]) + torch.tensor(order[1])) + torch.tensor(order[2])

        def add(group: Group, order: tuple[float, ...] = order) -> Tensor:
            time.sleep(0.002 * ((group.rank + order.index(1e8)) % 3))  # they come in another order than they stand
            return group.all_reduce(torch.full((5, 7), order[group.rank]))

        for total in on_all(groups, add):
            assert torch.equal(total, torch.full((5, 7), wanted.item()))
        for group in groups:
            group.close()


def test_many_sums_in_a_row_do_not_mix(kind: str, tmp_path: Path) -> None:
    groups = make(kind, tmp_path, 4)

    def add(group: Group) -> list[Tensor]:
        return [group.all_reduce(torch.full((3,), 10.0**group.rank * n)) for n in range(1, 30)]

    for totals in on_all(groups, add):
        assert torch.equal(torch.stack(totals), torch.arange(1.0, 30.0)[:, None].expand(29, 3) * 1111.0)
    for group in groups:
        group.close()


def test_what_is_not_contiguous_or_empty_is_summed_too(kind: str, tmp_path: Path) -> None:
    groups = make(kind, tmp_path, 2)
    x = torch.arange(12.0).reshape(3, 4)
    for total in on_all(groups, lambda group: group.all_reduce(x.clone().T)):
        assert torch.equal(total, 2 * x.T)
    for total in on_all(groups, lambda group: group.all_reduce(torch.empty((0, 4)))):
        assert total.shape == (0, 4)
    for group in groups:
        group.close()


def test_parts_are_gathered_by_rank(kind: str, tmp_path: Path) -> None:
    groups = make(kind, tmp_path, 3)
    for parts in on_all(groups, lambda group: group.gather(torch.full((2, 3), group.rank, dtype=torch.bfloat16).T)):
        assert [part.tolist() for part in parts] == [[[float(rank)] * 2] * 3 for rank in range(3)]
    for group in groups:
        group.close()


def test_what_rank_0_says_reaches_all(kind: str, tmp_path: Path) -> None:
    groups = make(kind, tmp_path, 3)
    found = on_all(groups, lambda group: group.broadcast(torch.tensor([7, 8 + group.rank], dtype=torch.int32)))
    assert [x.tolist() for x in found] == [[7, 8]] * 3
    for group in groups:
        group.close()


def test_a_rank_that_left_does_not_keep_others_waiting() -> None:
    groups = InOne(2).members
    timer = threading.Timer(0.05, groups[1].close)
    timer.start()
    with pytest.raises(LostRanks):
        groups[0].all_reduce(torch.zeros(1))
    timer.join()


def test_a_group_that_was_left_says_so(tmp_path: Path) -> None:
    for group in gloo(tmp_path, 2):
        group.close()
        group.close()
        with pytest.raises(RuntimeError, match="left"):
            group.all_reduce(torch.zeros(1))


def test_a_rank_that_hangs_is_given_up(tmp_path: Path) -> None:
    groups = gloo(tmp_path, 2, timeout=0.2)
    for call in (groups[0].all_reduce, groups[1].broadcast):
        with pytest.raises(LostRanks, match=r"(?i)timed out|closed|reset"):
            call(torch.zeros(4))
    for group in groups:
        group.close()


def test_who_meets_nobody_gives_up(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        Gloo(tmp_path / "meeting", 0, 2, timeout=30.0, meeting_timeout=0.2)
