"""Masks under a token budget: the bounds they stand on, and that a walk within a budget always comes to an end."""

from __future__ import annotations

import random

import numpy as np
import pytest

from palmette.errors import RequestError, UnsupportedConstraint
from palmette.fsm.automaton import NO_WAY
from palmette.fsm.compile import compile
from palmette.fsm.costs import Runs, fewest_tokens
from palmette.fsm.dfa import DEAD
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec
from tests.fsm.test_matcher_oracle import EOS, VOCABULARY, wide_vocabulary
from tests.fsm.test_regex_oracle import random_pattern

TREE = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 3}, "b": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["b"],
}
SPECS: list[tuple[str, Spec]] = [
    ("counted", Regex("a{3,7}b{2}(c|dd){4}")),
    ("runs", Regex("[ab ]{40}x{9}")),
    ("characters", Regex("(é|日|a){3,9}z")),
    ("choices", Choices(("abcabc", "abcd", "b", "日本語", "日本"))),
    ("intersection", Regex("(?=[a-f]*d)[a-h]{2,30}")),
    ("lookahead", Regex("(?!abc)[a-c]{3,5}x*")),
    ("schema", JsonSchema.of({**TREE, "additionalProperties": False})),
    ("open schema", JsonSchema.of({"type": "object", "required": ["q"], "properties": {"r": {"minLength": 3}}})),
    ("recursive", JsonSchema.of(TREE)),
    ("any", JsonSchema.of(True)),
    ("grammar", Grammar('root ::= a | "x"\na ::= "(" root "," root ")" | "[[" a "]]]]"')),
    ("left chain", Grammar('root ::= a "d"\na ::= b "c"\nb ::= "b" root root | "aa"')),
]


@pytest.mark.parametrize(("name", "spec"), SPECS, ids=[n for n, _ in SPECS])
def test_bounds_hold_behind_every_token_and_one_token_always_comes_closer(name: str, spec: Spec) -> None:
    vocabulary = wide_vocabulary()
    automaton = compile(spec, vocabulary).automaton
    rng = random.Random(8)
    seen = 0
    for _ in range(4):
        state = automaton.start
        for _ in range(7):
            by_token = automaton.token_costs(state)
            ids = np.flatnonzero(by_token < NO_WAY)
            costs = by_token[ids]
            cost = automaton.cost_to_accept(state)
            if len(ids):
                assert int(costs.max()) <= automaton.peak(state)
            if automaton.accepts(state):
                assert cost == 1
            else:
                assert int(costs.min()) <= cost - 1
            if not len(ids):
                break
            seen += 1
            state = automaton.after_token(state, int(rng.choice(ids.tolist())))
            assert state != DEAD
    assert seen >= 4


@pytest.mark.parametrize(("name", "spec"), SPECS, ids=[n for n, _ in SPECS])
def test_a_walk_within_a_budget_comes_to_an_end(name: str, spec: Spec) -> None:
    vocabulary = wide_vocabulary()
    constraint = compile(spec, vocabulary)
    least = constraint.matcher().cost_to_accept()
    for extra, seed in ((0, 1), (1, 2), (3, 3), (9, 4)):
        matcher, rng = constraint.matcher(), random.Random(seed)
        for left in range(least + extra, 0, -1):
            token = int(rng.choice(matcher.allowed(budget=left).tolist()))
            matcher.advance(token)
            if token == EOS:
                break
        assert matcher.is_terminated


def test_masks_under_a_budget_are_exactly_the_tokens_whose_bound_fits() -> None:
    rng = random.Random(12)
    compared = 0
    for _ in range(60):
        try:
            constraint = compile(Regex(random_pattern(rng, 4)), VOCABULARY)
        except UnsupportedConstraint:
            continue
        matcher, automaton = constraint.matcher(), constraint.automaton
        for left in range(9, 0, -1):
            state = automaton.read(automaton.start, b"".join(VOCABULARY.tokens[t] for t in matcher.tokens))
            if automaton.cost_to_accept(state) > left:
                with pytest.raises(RequestError):
                    matcher.allowed(budget=left)
                break
            plain = matcher.allowed().tolist()
            behind = {t: automaton.cost_to_accept(automaton.after_token(state, t)) for t in plain if t != EOS}
            expected = [t for t in plain if t == EOS or behind[t] <= left - 1]
            assert matcher.allowed(budget=left).tolist() == expected
            compared += 1
            matcher.advance(rng.choice(expected))
            if matcher.is_terminated:
                break
    assert compared > 100


def test_a_text_is_spelled_in_the_fewest_tokens_there_are() -> None:
    vocabulary = wide_vocabulary()
    spellings = {t for t in vocabulary.tokens if t}
    rng = random.Random(6)
    for _ in range(200):
        data = "".join(rng.choices("abcé日 1", k=rng.randint(1, 9))).encode()
        least = [0] * (len(data) + 1)
        for at in reversed(range(len(data))):
            least[at] = 1 + min(least[end] for end in range(at + 1, len(data) + 1) if data[at:end] in spellings)
        assert fewest_tokens(vocabulary, data) == least


def test_a_budget_that_is_far_changes_nothing_and_costs_no_table() -> None:
    constraint = compile(Regex("[a-z]{1,400}"), wide_vocabulary())
    matcher = constraint.matcher()
    for _ in range(30):
        words = matcher.mask()
        out = np.zeros_like(words)
        matcher.fill_mask(out, budget=5000)
        assert np.array_equal(out, words)
        matcher.advance(int(matcher.allowed()[1]))
    assert not constraint.automaton._token_costs


def test_a_long_run_costs_what_filling_in_every_length_says() -> None:
    rng = random.Random(1)
    for _ in range(40):
        lengths = tuple(sorted({1, *rng.sample(range(2, 12), rng.randint(1, 5))}))
        left, worst = [0], [0]
        for n in range(1, 1200):
            left.append(1 + min(left[n - k] for k in lengths if k <= n))
            worst.append(max(worst[-1], left[-1]))
        runs = Runs({7: lengths})
        for n in rng.sample(range(1200), 150):
            assert runs.cost(7, n) == (left[n], worst[n]), (lengths, n)
