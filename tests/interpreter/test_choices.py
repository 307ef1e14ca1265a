"""The four rules on hand-computed tables, and the trie they are scored on."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.interpreter.choices import (
    Scored,
    build_trie,
    exact_probability,
    greedy_token_selection,
    pick_by_temperature,
    score_choices,
    token_length_normalized,
    unconditional_likelihood_normalized,
)


def scored(rows: list[list[float]], stop: list[float] | None = None, alone: list[list[float]] | None = None) -> Scored:
    return Scored(
        choices=tuple("abcdefgh"[: len(rows)]),
        token_ids=tuple(tuple(range(len(row))) for row in rows),
        logprobs=tuple(map(tuple, rows)),
        stop=tuple(stop or [0.0] * len(rows)),
        unconditional=tuple(map(tuple, alone or [])),
    )


def test_token_length_normalized_takes_the_best_mean() -> None:
    decision = token_length_normalized.decide(scored([[-1.0, -1.0], [-1.5], [-0.1, -0.1, -3.0]]))
    assert (decision.decision, decision.index) == ("a", 0)
    assert decision.meta_info["normalized_prompt_logprobs"] == pytest.approx([-1.0, -1.5, -3.2 / 3])


def test_greedy_takes_the_best_first_token_whatever_follows() -> None:
    decision = greedy_token_selection.decide(scored([[-0.5, -9.0], [-0.6, -0.1]]))
    assert decision.decision == "a"


def test_greedy_goes_on_among_equals_and_an_ended_choice_stands_with_its_mean() -> None:
    # a and c share the best first token; behind it, a's mean (-0.5) is above c's second token.
    decision = greedy_token_selection.decide(scored([[-0.5], [-0.6], [-0.5, -0.7]]))
    assert decision.decision == "a"
    assert decision.meta_info["greedy_logprob_matrix"] == [[-0.5, -0.5], [-0.6, -0.6], [-0.5, -0.7]]
    assert greedy_token_selection.decide(scored([[-0.5], [-0.6], [-0.5, -0.2]])).decision == "c"


def test_unconditional_subtracts_what_a_token_is_worth_anyway() -> None:
    # b is likely anyway; the prompt makes a more likely than it was.
    decision = unconditional_likelihood_normalized.decide(
        scored([[-2.0, -1.0], [-1.0, -0.5]], alone=[[0.0, -5.0], [0.0, -0.5]])
    )
    assert decision.decision == "a"
    assert decision.scores == pytest.approx((1.0, -0.5))


def test_exact_probability_multiplies_and_normalises() -> None:
    decision = exact_probability.decide(scored([[math.log(0.5)], [math.log(0.5), math.log(0.4)]], [math.log(0.6), 0.0]))
    assert decision.meta_info["probabilities"] == pytest.approx([0.6, 0.4])


def test_exact_probability_survives_choices_that_cannot_be() -> None:
    decision = exact_probability.decide(scored([[-math.inf], [-1.0]]))
    assert decision.decision == "b"
    assert decision.meta_info["probabilities"] == pytest.approx([0.0, 1.0])


def test_a_temperature_draws_in_proportion() -> None:
    table = scored([[math.log(0.7)], [math.log(0.3)]])
    decision = token_length_normalized.decide(table)
    rng = random.Random(0)
    drawn = [pick_by_temperature(decision, table, 1.0, rng.random()).decision for _ in range(4000)]
    assert drawn.count("a") / len(drawn) == pytest.approx(0.7, abs=0.03)
    assert pick_by_temperature(decision, table, 0.0, 0.99).decision == "a"
    assert pick_by_temperature(decision, table, 1.0, 0.9999999).decision == "b"


sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8)


@given(sequences)
def test_the_trie_is_depth_first_and_spells_every_choice(choices: list[list[int]]) -> None:
    trie, paths = build_trie(choices)
    for choice, path in zip(choices, paths, strict=True):
        assert [trie.token_ids[node] for node in path] == choice
        assert [trie.parents[node] for node in path] == [-1, *path[:-1]]
    assert all(parent < node for node, parent in enumerate(trie.parents))
    prefixes = {tuple(c[:end]) for c in choices for end in range(1, len(c) + 1)}
    assert len(trie.token_ids) == len(prefixes)
    # depth-first: a node's descendants stand in one run behind it
    for node in range(len(trie.parents)):
        below = [m for m in range(len(trie.parents)) if _descends(trie.parents, m, node)]
        assert below == list(range(node, node + len(below)))


def _descends(parents: tuple[int, ...], node: int, ancestor: int) -> bool:
    while node > ancestor:
        node = parents[node]
    return node == ancestor


@given(sequences, st.data())
def test_the_probabilities_of_all_paths_through_a_complete_trie_add_up(
    choices: list[list[int]], data: st.DataObject
) -> None:
    """P(choice) summed over every choice of a trie whose tokens carry all the mass is 1."""
    trie, _ = build_trie(choices)
    leaves = [tuple(c) for c in choices if not any(tuple(o[: len(c)]) == tuple(c) and o != c for o in choices)]
    leaves = list(dict.fromkeys(leaves))
    trie, paths = build_trie(leaves)
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(trie.parents):
        children.setdefault(parent, []).append(node)
    logprobs = [0.0] * len(trie.parents)
    for nodes in children.values():
        weights = [data.draw(st.floats(0.1, 1.0)) for _ in nodes]
        for node, weight in zip(nodes, weights, strict=True):
            logprobs[node] = math.log(weight / math.fsum(weights))
    table = score_choices(["".join(map(str, c)) for c in leaves], trie, paths, logprobs, ())
    total = math.fsum(math.exp(math.fsum(row) + stop) for row, stop in zip(table.logprobs, table.stop, strict=True))
    assert total == pytest.approx(1.0)
