"""Whatever way tokens are scheduled, a sequence's logits are those of the whole sequence computed at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from palmette.errors import InvalidOption
from palmette.runtime.model_runner import LOGIT_BLOCK, ModelRunner
from palmette.runtime.models.config import FAMILIES
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from tests.runtime.naive import tree_path

TOLERANCE = 5e-5
NUM_SLOTS = 3000


def make_runner(family: str = "llama", **options: int) -> ModelRunner:
    loaded = tiny_model(1, family)
    return ModelRunner(loaded.decoder, **{"num_slots": NUM_SLOTS, "max_running_rows": 32, **options})


def tokens(num: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).randrange(256) for _ in range(num))


def free_slots(seed: int = 0) -> list[int]:
    return random.Random(seed).sample(range(NUM_SLOTS), NUM_SLOTS)


@cache
def whole(family: str, ids: tuple[int, ...]) -> Tensor:
    """The oracle: one row, nothing cached, all logits."""
    return make_runner(family).forward(one(ScheduledRow(0, ids, 0, tuple(range(len(ids))), logits_from=0)))


def one(*rows: ScheduledRow) -> ScheduledBatch:
    return ScheduledBatch(rows)


def assert_same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_extend_and_decode_equal_one_prefill(family: str) -> None:
    ids, slots = tokens(300), free_slots()
    runner = make_runner(family)
    parts, at = [], 0
    for num in (100, 1, 1, 64, 31, 1, 100, 1, 1):
        row = ScheduledRow(5, ids[at : at + num], at, tuple(slots[at : at + num]), logits_from=0)
        parts.append(runner.forward(one(row)))
        at += num
    assert_same(torch.cat(parts), whole(family, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_mixed_batch_equal_each_alone(family: str) -> None:
    runner, slots = make_runner(family), free_slots()
    prompts = [tokens(n, seed=n) for n in (1, 3, 63, 64, 65, 130, 200)]
    owned = [tuple(slots.pop() for _ in ids) for ids in prompts]
    done = [0, 2, 0, 63, 64, 100, 199]  # cached before the step in question
    for i, (ids, mine, cached) in enumerate(zip(prompts, owned, done, strict=True)):
        if cached:
            runner.forward(one(ScheduledRow(i, ids[:cached], 0, mine[:cached])))
    logits = runner.forward(
        ScheduledBatch(
            tuple(
                ScheduledRow(i, ids[cached:], cached, mine[cached:], logits_from=0)
                for i, (ids, mine, cached) in enumerate(zip(prompts, owned, done, strict=True))
            )
        )
    )
    wanted = [whole(family, ids)[cached:] for ids, cached in zip(prompts, done, strict=True)]
    assert_same(logits, torch.cat(wanted))


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_that_share_a_prefix_equal_each_alone(family: str) -> None:
    runner, slots = make_runner(family), free_slots()
    shared = tokens(150)
    prefix = tuple(slots.pop() for _ in shared)
    runner.forward(one(ScheduledRow(0, shared, 0, prefix)))
    suffixes = [tokens(n, seed=n) for n in (1, 1, 5, 40, 90)]
    rows = [
        ScheduledRow(i, s, 150, tuple(slots.pop() for _ in s), prefix=(0, prefix), logits_from=0)
        for i, s in enumerate(suffixes)
    ]
    assert_same(runner.forward(one(*rows)), torch.cat([whole(family, shared + s)[150:] for s in suffixes]))


def test_a_prefix_computed_by_another_row_of_the_same_step_is_read() -> None:
    runner, slots = make_runner(), free_slots()
    shared, own = tokens(100), tokens(30, seed=7)
    first, second = tuple(slots[:100]), tuple(slots[100:130])
    logits = runner.forward(
        one(
            ScheduledRow(1, own, 100, second, prefix=(0, first), logits_from=0),
            ScheduledRow(0, shared, 0, first, logits_from=99),
        )
    )
    wanted = whole("llama", shared + own)
    assert_same(logits, torch.cat([wanted[100:], wanted[99:100]]))


def trie(seed: int, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rng = random.Random(seed)
    return tokens(size, seed), tuple(rng.randint(max(-1, i - 4), i - 1) for i in range(size))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pieces", [(30,), (1, 13, 16), (70, 50)])
def test_a_trie_scores_like_each_of_its_paths_alone(family: str, pieces: Sequence[int]) -> None:
    runner, slots = make_runner(family), free_slots()
    prompt = tokens(120)
    ids, parents = trie(3, sum(pieces))
    prefix, nodes = tuple(slots[:120]), tuple(slots[120 : 120 + len(ids)])
    runner.forward(one(ScheduledRow(0, prompt, 0, prefix)))
    found, first = [], 0
    for num in pieces:
        part = slice(first, first + num)
        row = ScheduledRow(0, ids[part], 120 + first, nodes[part], logits_from=0, tree=TreeRow(120, parents, first))
        found.append(runner.forward(one(row)))
        first += num
    logits = torch.cat(found)
    for node in range(0, len(ids), 7):
        path = tuple(ids[n] for n in tree_path(parents, node))
        assert_same(logits[node], whole(family, prompt + path)[-1])


def test_a_trie_behind_an_empty_prompt_is_scored() -> None:
    ids, parents = trie(5, 20)
    row = ScheduledRow(0, ids, 0, tuple(range(20)), logits_from=0, tree=TreeRow(0, parents, 0))
    logits = make_runner().forward(one(row))
    for node in range(20):
        assert_same(logits[node], whole("llama", tuple(ids[n] for n in tree_path(parents, node)))[-1])


def test_only_wanted_logits_come_back_in_row_order() -> None:
    ids, slots = tokens(10), free_slots()
    batch = one(
        ScheduledRow(0, ids, 0, tuple(slots[:10]), logits_from=8),
        ScheduledRow(1, ids, 0, tuple(slots[10:20])),
        ScheduledRow(2, ids, 0, tuple(slots[20:30]), logits_from=9),
    )
    logits = make_runner().forward(batch)
    wanted = whole("llama", ids)
    assert logits.dtype == torch.float32
    assert batch.num_logits == 3
    assert_same(logits, wanted[[8, 9, 9]])


def test_a_step_without_logits_gives_none() -> None:
    logits = make_runner().forward(one(ScheduledRow(0, tokens(5), 0, tuple(range(5)))))
    assert logits.shape == (0, 260)


def test_logits_of_many_tokens_go_through_the_head_in_blocks() -> None:
    runner = make_runner()
    num = 2 * LOGIT_BLOCK + 1
    logits = runner.forward(one(ScheduledRow(0, tokens(num), 0, tuple(range(num)), logits_from=0)))
    assert logits.shape == (num, 260)
    short = runner.forward(
        one(ScheduledRow(1, tokens(num)[-1:], num - 1, (num,), prefix=(0, tuple(range(num - 1))), logits_from=0))
    )
    assert_same(logits[-1:], short)


def test_slots_may_be_used_again_by_another_request() -> None:
    runner = make_runner()
    runner.forward(one(ScheduledRow(0, tokens(50, seed=1), 0, tuple(range(50)))))
    ids = tokens(50, seed=2)
    assert_same(
        runner.forward(one(ScheduledRow(0, ids, 0, tuple(range(50)), logits_from=0))),
        whole("llama", ids),
    )


def test_embed_is_the_last_hidden_state_of_length_one() -> None:
    runner, ids = make_runner(), tokens(40)
    vector = runner.embed(ids, tuple(range(40)), 3)
    assert vector.shape == (32,)
    assert vector.norm() == pytest.approx(1.0)
    logits = runner.model.logits(vector[None])[0]
    assert torch.cosine_similarity(logits, whole("llama", ids)[-1], dim=0) == pytest.approx(1.0)
    again = runner.embed(ids, tuple(range(100, 140)), 4)
    torch.testing.assert_close(vector, again)


@pytest.mark.parametrize("option", ["num_slots", "max_running_rows", "context_len"])
def test_a_size_that_is_not_positive_is_refused(option: str) -> None:
    with pytest.raises(InvalidOption, match=option):
        make_runner("llama", **{option: 0})


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(InvalidOption, match="2048"):
        make_runner(context_len=2049)
