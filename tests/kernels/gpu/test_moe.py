"""Mixture of experts under Triton against its torch definition."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from palmette.kernels import moe as definition
from palmette.kernels.gpu import moe as kernels
from palmette.kernels.gpu.expert_pairs import max_blocks, route, route_and_sort
from palmette.kernels.gpu.moe import Tiles
from tests.kernels.gpu.close import DEVICE, poisoned_empty

SMALL = Tiles(16, 32, 16, 4, 2)
EPS = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


class Case:
    """Random weights, and logits that spread."""

    def __init__(
        self, num_tokens: int, num_experts: int, hidden: int, inner: int, dtype: torch.dtype = torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(num_tokens)

        def randn(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)

        self.x, self.logits = randn(num_tokens, hidden), randn(num_tokens, num_experts, scale=2.0)
        self.gate_up = randn(num_experts, 2 * inner, hidden, scale=hidden**-0.5)
        self.down = randn(num_experts, hidden, inner, scale=inner**-0.5)

    def run(self, top_k: int, normalise: bool = True, **options: object) -> Tensor:
        with poisoned_empty():
            return kernels.moe(
                self.x,
                self.logits,
                self.gate_up,
                self.down,
                top_k=top_k,
                normalise=normalise,
                **options,  # type: ignore[arg-type]
            )

    def assert_close(self, got: Tensor, top_k: int, normalise: bool = True, activation: str = "silu") -> None:
        """Within three roundings (of what the activation, an expert and the sum put out) of the definition in float32:
        each moves a result by no more than a unit in the last place of the sum of what is added, taken positive."""
        weights, ids = definition.route(self.logits, top_k=top_k, normalise=normalise)
        x, gate_up, down = self.x.float(), self.gate_up.float(), self.down.float()
        wanted = definition.moe(
            x,
            self.logits,
            gate_up,
            down,
            top_k=top_k,
            normalise=normalise,
            activation=activation,  # type: ignore[arg-type]
        )
        magnitude = torch.zeros_like(wanted)
        for token, (mine, shares) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
            for expert, share in zip(mine, shares, strict=True):
                gate, up = (gate_up[expert] @ x[token]).chunk(2)
                inner = (
                    torch.nn.functional.gelu(gate, approximate="tanh")
                    if activation != "silu"
                    else gate.sigmoid() * gate
                )
                magnitude[token] += share * (down[expert].abs() @ (inner * up).abs())
        assert got.dtype == self.x.dtype
        error = (got.float() - wanted).abs()
        assert (error <= 3 * EPS[got.dtype] * magnitude + 1e-6).all(), f"{error.max()} of {magnitude.max()}"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Where a kernel computes with NaN, numpy warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


# -- routing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [128, 8192])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "normalise"), [(1, 4, 2, True), (21, 6, 4, False), (33, 8, 1, True)]
)
def test_routes_are_those_of_the_definition(
    num_tokens: int, num_experts: int, top_k: int, normalise: bool, chunk: int
) -> None:
    logits = Case(num_tokens, num_experts, 16, 16, torch.bfloat16).logits  # ties are common
    logits[0] = torch.tensor([float("-inf"), 1.0] * 4)[:num_experts]
    with poisoned_empty():
        weights, ids = route(logits, top_k=top_k, normalise=normalise, chunk=chunk)
    wanted_weights, wanted_ids = definition.route(logits, top_k=top_k, normalise=normalise)
    assert torch.equal(ids.long(), wanted_ids)
    torch.testing.assert_close(weights, wanted_weights)


@pytest.mark.parametrize("row", [[float("nan")] * 5, [0.0, float("nan"), 2.0, float("inf"), 1.0], [float("-inf")] * 5])
def test_whatever_logits_are_a_token_has_top_k_experts(row: list[float]) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], row], device=DEVICE)
    weights, ids = route(logits, top_k=3, normalise=True)
    assert torch.equal(ids.long(), definition.route(logits, top_k=3, normalise=True)[1])
    assert weights[1].isnan().all()
    assert weights[0].isfinite().all()


def sorted_blocks(logits: Tensor, top_k: int, block_m: int, chunk: int) -> tuple[list[int], list[list[int]]]:
    """(pairs, blocks) as the device has them."""
    with poisoned_empty():
        _, pairs, blocks = route_and_sort(logits, top_k=top_k, normalise=True, block_m=block_m, chunk=chunk)
    rows = blocks.tolist()
    return pairs.tolist(), rows[1 : 1 + rows[0][0]]


@pytest.mark.parametrize("chunk", [160, 8192])
@pytest.mark.parametrize(
    "logits",
    [
        torch.randn((40, 8), generator=torch.Generator().manual_seed(0)),
        torch.arange(8.0).repeat(40, 1),  # the same experts for all
        torch.eye(8)[torch.arange(40) % 8] * 9.0,  # in turn
        -torch.arange(6.0)[None],
    ],
    ids=["random", "same", "turns", "one"],
)
@pytest.mark.parametrize("top_k", [1, 4])
def test_blocks_hold_every_pair_once_by_expert_and_token(logits: Tensor, top_k: int, chunk: int) -> None:
    block_m, ids = 16, definition.route(logits, top_k=top_k, normalise=True)[1].flatten().tolist()
    pairs, blocks = sorted_blocks(logits.to(DEVICE), top_k, block_m, chunk)
    assert sorted(pairs) == list(range(len(ids)))
    assert pairs == sorted(pairs, key=lambda pair: (ids[pair], pair))
    assert [place for _, begin, end in blocks for place in range(begin, end)] == list(range(len(ids)))
    for expert, begin, end in blocks:
        assert 0 < end - begin <= block_m
        assert {ids[pair] for pair in pairs[begin:end]} == {expert}
    assert len(blocks) == sum(-(-ids.count(expert) // block_m) for expert in set(ids))
    assert len(blocks) <= max_blocks(len(ids), logits.shape[1], block_m)


def test_the_worst_routing_fills_the_grid() -> None:
    assert max_blocks(8, 128, 16) == 8
    assert max_blocks(17 + 7, 8, 16) == 9  # one expert has 17, seven have 1
    assert max_blocks(17, 1, 16) == 2


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "hidden", "inner"),
    [(1, 4, 2, 32, 32), (5, 6, 1, 48, 40), (40, 8, 4, 32, 24), (3, 5, 5, 80, 16)],
)
def test_it_is_its_definition(
    num_tokens: int, num_experts: int, top_k: int, hidden: int, inner: int, dtype: torch.dtype
) -> None:
    case = Case(num_tokens, num_experts, hidden, inner, dtype)
    case.assert_close(case.run(top_k), top_k)


@pytest.mark.parametrize("block_m", [16, 32, 64, 128])
def test_every_height_of_block_computes_the_same(block_m: int) -> None:
    """From 64 on tokens are the left operand. 40 columns and 48 of depth leave the last tiles half empty."""
    case = Case(24, 4, 48, 40)
    tiles = Tiles(block_m, 32, 32, 4, 2)
    case.assert_close(case.run(2, tiles=(tiles, tiles)), 2)


@pytest.mark.parametrize(("normalise", "activation"), [(False, "silu"), (True, "gelu_tanh")])
def test_weights_that_are_not_normalised_and_gelu(normalise: bool, activation: str) -> None:
    case = Case(6, 4, 32, 32)
    got = case.run(2, normalise, activation=activation, tiles=(SMALL, SMALL))
    case.assert_close(got, 2, normalise, activation)


def test_all_tokens_on_one_expert_and_tokens_in_many_chunks() -> None:
    case = Case(35, 4, 32, 16)
    case.logits[:, 2] += 100.0
    case.assert_close(case.run(1, tiles=(SMALL, SMALL), chunk=64), 1)


def test_a_token_may_be_a_chunk() -> None:
    case = Case(4, 6, 32, 16)
    case.assert_close(case.run(3, chunk=1), 3)


def test_a_tokens_result_does_not_depend_on_its_batch_mates() -> None:
    case = Case(20, 4, 32, 32)
    among = case.run(2)
    alone = Case(20, 4, 32, 32)
    for token in (0, 19):
        alone.x, alone.logits = case.x[token : token + 1], case.logits[token : token + 1]
        torch.testing.assert_close(alone.run(2)[0], among[token], rtol=1e-5, atol=1e-6)


def test_one_tokens_nan_stays_its_own() -> None:
    """Also where the last tile of a row's depth reaches into the next row."""
    case, tiles = Case(18, 4, 48, 40), Tiles(16, 32, 32, 4, 2)
    wanted = case.run(2, tiles=(tiles, tiles))
    case.x[3], case.logits[3] = float("nan"), float("nan")
    got = case.run(2, tiles=(tiles, tiles))
    assert got[3].isnan().all()
    others = [token for token in range(18) if token != 3]
    torch.testing.assert_close(got[others], wanted[others], rtol=1e-5, atol=1e-6)


def test_weights_of_experts_that_nobody_chose_are_not_read() -> None:
    case = Case(6, 4, 32, 32)
    case.logits[:, 1] = -100.0
    wanted = case.run(2)
    case.gate_up[1], case.down[1] = float("nan"), float("nan")
    assert torch.equal(case.run(2), wanted)


def test_with_a_router_it_is_a_whole_layer() -> None:
    case = Case(4, 4, 32, 32)
    router = Case(4, 4, 32, 32).down[0, :4].contiguous() * 3
    got = kernels.experts(case.x, router, case.gate_up, case.down, top_k=2, normalise=True)
    wanted = definition.experts(case.x, router, case.gate_up, case.down, top_k=2, normalise=True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_no_tokens_are_no_launch() -> None:
    assert Case(0, 4, 32, 32).run(2).shape == (0, 32)


# -- tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_experts", "hidden", "inner", "top_k"), [(128, 2048, 768, 8), (8, 4096, 14336, 2)])
def test_tiles_grow_with_the_tokens_and_suit_both_products(
    num_experts: int, hidden: int, inner: int, top_k: int, dtype: torch.dtype
) -> None:
    heights = []
    for num_tokens in (1, 16, 64, 256, 1024, 16384):
        first, second = kernels.choose_tiles(
            num_tokens * top_k, num_experts, hidden=hidden, inner=inner, dtype=dtype, processors=132
        )
        assert first.block_m == second.block_m  # they share the blocks
        heights.append(first.block_m)
        stage = (first.block_m + first.width) * first.block_k * dtype.itemsize
        assert first.num_stages * stage <= 227 * 1024
    assert heights == sorted(heights)
    assert heights[0] == 16
    assert heights[-1] == (32 if dtype == torch.float32 else 128)
