"""The yardstick: against counting distinct prefixes one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from palmette.runtime.optimum import ReuseOptimum

PATHS = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), min_size=1, max_size=8)), max_size=20)


@given(PATHS)
def test_each_distinct_path_counts_once_and_a_known_prompt_counts_one(paths: list[tuple[str, list[int]]]) -> None:
    optimum = ReuseOptimum()
    known: set[tuple[str, tuple[int, ...]]] = set()
    total = 0
    for namespace, tokens in paths:
        prefixes = {(namespace, tuple(tokens[: i + 1])) for i in range(len(tokens))}
        expected = max(1, len(prefixes - known))
        known |= prefixes
        total += expected
        assert optimum.add_prompt(namespace, tokens) == expected
    assert optimum.computed_tokens == total
    assert optimum.prompt_tokens == sum(len(tokens) for _, tokens in paths)


def test_sampled_tokens_are_known_to_the_prompts_that_follow() -> None:
    optimum = ReuseOptimum()
    optimum.add_prompt("", [1, 2])
    optimum.add_path("", [1, 2, 3, 4])
    assert optimum.add_prompt("", [1, 2, 3, 4, 5, 6]) == 2
