"""The compiled runner: torch's logits in float32, and in every format the same bits however tokens are scheduled."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from palmette.runtime.compiled_runner import CompiledRunner
from palmette.runtime.models.config import FAMILIES
from palmette.runtime.models.tiny import RandomSource, tiny_config
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from tests.kernels.cpu.models import FORMATS, compile_config, core, decoder, make_runner, reference, run, source
from tests.runtime import test_model_runner as shared
from tests.runtime.test_model_runner import assert_same, free_slots, one, tokens, trie

SETS = core().instruction_sets
BEST = SETS[0]


# -- what holds for torch's runner ---------------------------------------------------------------------------------

BY_FAMILY: tuple[Callable[[str], None], ...] = (
    shared.test_chunked_extend_and_decode_equal_one_prefill,
    shared.test_rows_of_a_mixed_batch_equal_each_alone,
    shared.test_siblings_that_share_a_prefix_equal_each_alone,
    lambda family: shared.test_a_trie_scores_like_each_of_its_paths_alone(family, (30,)),
    lambda family: shared.test_a_trie_scores_like_each_of_its_paths_alone(family, (1, 13, 16)),
    lambda family: shared.test_a_trie_scores_like_each_of_its_paths_alone(family, (70, 50)),
)
OTHERS: tuple[Callable[[], None], ...] = (
    shared.test_a_prefix_computed_by_another_row_of_the_same_step_is_read,
    shared.test_a_trie_behind_an_empty_prompt_is_scored,
    shared.test_only_wanted_logits_come_back_in_row_order,
    shared.test_a_step_without_logits_gives_none,
    shared.test_logits_of_many_tokens_go_through_the_head_in_blocks,
    shared.test_slots_may_be_used_again_by_another_request,
)


@cache
def reference_logits(family: str, ids: tuple[int, ...]) -> Tensor:
    runner = reference(tiny_config(family), source("F32"))
    return runner.forward(one(ScheduledRow(0, ids, 0, tuple(range(len(ids))), logits_from=0)))


@pytest.fixture(params=SETS)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared tests make compiled runners, and still compare with torch's logits."""

    def make(family: str = "llama") -> CompiledRunner:
        return make_runner(family, "F32", request.param, num_threads=2)

    monkeypatch.setattr(shared, "make_runner", make)
    monkeypatch.setattr(shared, "whole", reference_logits)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("test", BY_FAMILY, ids=range(len(BY_FAMILY)))
def test_float32_logits_are_those_of_torch(test: Callable[[str], None], family: str) -> None:
    test(family)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("test", OTHERS, ids=range(len(OTHERS)))
def test_steps_are_read_as_torch_reads_them(test: Callable[[], None]) -> None:
    test()


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_long_contexts_are_those_of_torch(family: str, instruction_set: str) -> None:
    """Over several spans of keys, and past every window."""
    ids, slots = tokens(700), free_slots()
    runner = make_runner(family, "F32", instruction_set, num_threads=2)
    row = ScheduledRow(2, ids[:650], 0, tuple(slots[:650]), logits_from=0)
    rest = ScheduledRow(2, ids[650:], 650, tuple(slots[650:700]), logits_from=0)
    got = torch.cat([runner.forward(one(row)), runner.forward(one(rest))])
    assert_same(got, reference_logits(family, ids))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(2, 1, 16), (6, 2, 32), (9, 3, 64), (7, 1, 96), (8, 8, 48)]
)
def test_other_shapes_of_heads_are_those_of_torch(
    heads: int, kv_heads: int, head_dim: int, instruction_set: str
) -> None:
    layer = tiny_config().layers[0]
    config = replace(
        tiny_config(vocab_size=261),
        hidden_size=96,
        intermediate_size=160,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        layers=(replace(layer, rope=replace(layer.rope, dim=head_dim - 4)), replace(layer, window=50)),
    )
    ids = tokens(120)
    step = one(ScheduledRow(0, ids, 0, tuple(range(120)), logits_from=0))
    model = compile_config(config, RandomSource(3), instruction_set)
    assert_same(run(model).forward(step), reference(config, RandomSource(3)).forward(step))


@pytest.mark.parametrize("form", ["U8", "U4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_logits_are_near_those_of_torch_on_the_same_weights(family: str, form: str) -> None:
    """What differs is 8 bits of activations and half-precision keys and values."""
    ids = tokens(300)
    step = one(ScheduledRow(0, ids, 0, tuple(range(300)), logits_from=0))
    wanted = reference(tiny_config(family), source(form)).forward(step)
    for instruction_set in SETS:
        got = make_runner(family, form, instruction_set).forward(step)
        error = (got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert 1e-5 < error < 0.03, f"{instruction_set}: {error:.4f}"


# -- the same bits ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Planned:
    """A token sequence on its way through a random schedule."""

    ids: tuple[int, ...]
    row: int
    slots: list[int] = field(default_factory=list)
    told: int = 0  # page-table entries written
    parts: list[Tensor] = field(default_factory=list)  # logits of every token since the last restart
    first: int = 0  # of the first token with logits


def restart(sequence: Planned, others: Sequence[Planned]) -> list[int]:
    """Begin again, from nothing or behind a cached prefix of another sequence; the slots that nobody needs any more."""
    mine = sequence.slots
    best = max(others, key=lambda other: common(sequence, other))
    sequence.first = min(common(sequence, best), len(sequence.ids) - 1)
    sequence.slots = best.slots[: sequence.first]
    sequence.told = 0
    sequence.parts.clear()
    in_use = {slot for s in (sequence, *others) for slot in s.slots}
    return [slot for slot in mine if slot not in in_use]


def common(a: Planned, b: Planned) -> int:
    """Tokens of `b` that are computed and also the first ones of `a`."""
    num = 0
    for x, y, _ in zip(a.ids, b.ids, b.slots, strict=False):
        if x != y:
            break
        num += 1
    return num


def random_sequences(rng: random.Random) -> list[Planned]:
    """Some with common prefixes, some of several spans."""
    trunk = tokens(rng.randrange(100, 600), rng.randrange(1000))
    made = []
    for row in range(7):
        kept = rng.choice([0, len(trunk) // 2, len(trunk) - 1, len(trunk)])
        made.append(Planned(trunk[:kept] + tokens(rng.choice([1, 2, 17, 90, 300]), row), row))
    return made


def follow_random_schedule(runner: CompiledRunner, sequences: list[Planned], rng: random.Random) -> None:
    """Compute all of them: any of them in any step, any number of tokens each, thrown away and begun again."""
    num_slots = runner.kv_pool.num_slots
    free = rng.sample(range(num_slots), num_slots)
    restarts = 6
    while any(len(s.slots) < len(s.ids) for s in sequences):
        rows, taking = [], []
        for s in rng.sample(sequences, rng.randint(1, len(sequences))):
            if rng.random() < (0.1 if s.slots and restarts else 0.7 * (not s.slots)):
                restarts -= bool(s.slots)
                free += restart(s, [o for o in sequences if o is not s])
            left = len(s.ids) - len(s.slots)
            if not left:
                continue
            num = min(left, rng.choice([1, 1, 2, 7, 31, 64, 65, 200, 600]))
            taking.append((s, [free.pop() for _ in range(num)]))
        for s, new in taking:
            start = len(s.slots)
            prefix = (0, tuple(s.slots)) if s.told < start else None
            part = tuple(s.ids[start : start + len(new)])
            rows.append(ScheduledRow(s.row, part, start, tuple(new), prefix=prefix, logits_from=0))
        if not rows:
            continue
        logits = runner.forward(ScheduledBatch(tuple(rows)))
        at = 0
        for s, new in taking:
            s.slots = [*s.slots, *new]
            s.told = len(s.slots)
            s.parts.append(logits[at : at + len(new)])
            at += len(new)


def alone(runner: CompiledRunner, ids: tuple[int, ...]) -> Tensor:
    return runner.forward(one(ScheduledRow(0, ids, 0, tuple(range(len(ids))), logits_from=0)))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_has_the_same_bits_in_every_schedule(family: str, form: str, instruction_set: str) -> None:
    rng = random.Random(f"{family} {form}")
    sequences = random_sequences(rng)
    num_slots = sum(len(s.ids) for s in sequences)
    scheduled = run(decoder(family, form, instruction_set), num_slots=num_slots, num_threads=rng.randint(1, 3))
    follow_random_schedule(scheduled, sequences, rng)
    plain = make_runner(family, form, instruction_set)
    for s in sequences:
        wanted = alone(plain, s.ids)
        assert torch.equal(torch.cat(s.parts), wanted[s.first :]), f"row {s.row}"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tries_have_the_same_bits_alone_in_pieces_and_among_others(family: str, form: str) -> None:
    prompt, (ids, parents) = tokens(290), trie(3, 60)
    other = tokens(40, seed=9)

    def prefilled(num_threads: int) -> CompiledRunner:
        runner = make_runner(family, form, BEST, num_threads=num_threads)
        runner.forward(one(ScheduledRow(0, prompt, 0, tuple(range(290)))))
        return runner

    def piece(row: int, first: int, last: int) -> ScheduledRow:
        slots = tuple(range(300 + 100 * row + first, 300 + 100 * row + last))
        prefix = (0, tuple(range(290))) if first == 0 else None
        tree = TreeRow(290, parents, first)
        return ScheduledRow(row, ids[first:last], 290 + first, slots, prefix=prefix, logits_from=0, tree=tree)

    wanted = prefilled(1).forward(one(piece(0, 0, 60)))
    runner = prefilled(2)
    pieces = [runner.forward(one(piece(0, first, first + 20))) for first in (0, 20, 40)]
    assert torch.equal(torch.cat(pieces), wanted)
    beside = ScheduledRow(3, other, 290, tuple(range(1000, 1040)), prefix=(0, tuple(range(290))), logits_from=0)
    crowd = runner.forward(one(piece(1, 0, 60), beside, piece(2, 0, 60)))
    assert torch.equal(crowd[:60], wanted)
    assert torch.equal(crowd[100:], wanted)
    assert torch.equal(crowd[60:100], alone(make_runner(family, form, BEST), prompt + other)[290:])


@pytest.mark.parametrize("form", FORMATS)
def test_threads_change_no_bit(form: str) -> None:
    ids = tokens(400)
    wanted = alone(make_runner("gemma3", form, BEST), ids)
    for num_threads in (2, 3, 5):
        assert torch.equal(alone(make_runner("gemma3", form, BEST, num_threads=num_threads), ids), wanted)


# -- masks, embeddings, defects ----------------------------------------------------------------------------------------


def packed(allowed: NDArray[np.bool_]) -> NDArray[np.uint32]:
    bits = np.zeros(-(-len(allowed) // 32) * 32, np.bool_)
    bits[: len(allowed)] = allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_a_mask_allows_has_the_bits_of_no_mask(family: str, form: str, instruction_set: str) -> None:
    rng = np.random.default_rng(7)
    rows = 21
    step = one(ScheduledRow(0, tokens(30), 0, tuple(range(30)), logits_from=30 - rows))
    runner = make_runner(family, form, instruction_set, num_threads=2)
    wanted = runner.forward(step).numpy()
    allowed = [rng.random(260) < rng.choice([0.0, 0.004, 0.03, 0.5, 1.0]) for _ in range(rows)]
    allowed[3][:] = False
    allowed[4][:] = True
    allowed[5][:] = False
    allowed[5][259] = True  # in the last tile, which is not full
    masks = [None if i % 6 == 2 else packed(a) for i, a in enumerate(allowed)]
    got = runner.forward(step, masks).numpy()
    left_out = 0
    for row, mask in enumerate(masks):
        ok = allowed[row] if mask is not None else np.ones(260, np.bool_)
        assert np.array_equal(got[row, ok], wanted[row, ok])
        rest = got[row, ~ok]
        assert np.all((rest == wanted[row, ~ok]) | np.isneginf(rest))
        left_out += int(np.isneginf(rest).sum())
    assert left_out > 1000, "nothing is saved by a mask"
    assert np.array_equal(runner.forward(step, [None] * rows).numpy(), wanted)


@pytest.mark.parametrize("form", FORMATS)
def test_embed_is_the_last_hidden_state_of_length_one(form: str) -> None:
    ids = tokens(40)
    vector = make_runner("llama", form, BEST).embed(ids, tuple(range(40)), 3)
    wanted = reference(tiny_config(), source(form)).embed(ids, tuple(range(40)), 3)
    assert vector.shape == (32,)
    assert vector.norm() == pytest.approx(1.0)
    error = (vector - wanted).abs().max()
    assert error < (5e-6 if form == "F32" else 0.02)
    again = make_runner("llama", form, BEST, num_threads=2).embed(ids, tuple(range(100, 140)), 4)
    assert torch.equal(vector, again)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("what", ["keys", "values"])
@pytest.mark.parametrize("dim", [0, 5, 15])
def test_nan_in_the_cache_of_one_request_shows_there_and_nowhere_else(
    dim: int, what: str, form: str, instruction_set: str
) -> None:
    sick, well = tokens(50, seed=1), tokens(70, seed=2)
    runner = make_runner("llama", form, instruction_set, num_threads=2)
    rows = [
        ScheduledRow(0, sick[:-2], 0, tuple(range(48))),
        ScheduledRow(1, well[:-2], 0, tuple(range(100, 168))),
    ]
    runner.forward(one(*rows))
    layer = runner.kv_pool.layer(1)
    (layer.keys if what == "keys" else layer.values)[20, 1, dim] = float("nan")
    logits = runner.forward(
        one(
            ScheduledRow(0, sick[-2:], 48, (48, 49), logits_from=0),
            ScheduledRow(1, well[-2:], 68, (168, 169), logits_from=0),
        )
    )
    assert torch.equal(logits[2:], alone(make_runner("llama", form, instruction_set), well)[-2:])
    assert not logits[:2].isfinite().all(1).any(), "a number that is none went by unseen"


@pytest.mark.parametrize(
    "name", ["embedding", "head", "layers.0.q", "layers.0.v", "layers.1.out", "layers.1.gate", "layers.0.down"]
)
def test_nan_in_the_weights_shows_in_the_logits(name: str) -> None:
    class Broken(RandomSource):
        def read_into(self, which: str, out: Tensor) -> None:
            super().read_into(which, out)
            if which == name:
                out[65 % len(out), 5] = float("nan")

    ids = (65,) * 4
    for instruction_set in SETS:
        logits = alone(run(compile_config(tiny_config(), Broken(1), instruction_set)), ids)
        assert not logits.isfinite().all(1).any()


def test_a_runner_can_be_dropped_and_made_again() -> None:
    """Its threads end with it."""
    ids = tokens(20)
    wanted = alone(make_runner("llama", "F32", BEST), ids)
    for _ in range(20):
        assert torch.equal(alone(make_runner("llama", "F32", BEST, num_threads=4), ids), wanted)
