"""Constraints made to explode: each is refused, or served within the limits on states and in little memory."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from benchmarks.fsm_bombs import OPEN, REFUSED, SERVED, nested_arrays, optional_properties
from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import compile
from palmette.fsm.limits import Limits
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Grammar, JsonSchema, Regex, Spec

WORDS = [b"ab", b"aaaa", b"bbbb", b"abab", b'", "', b'": ', b"null", b"true", b"property", b"value ", b"[[[["]
VOCABULARY = Vocabulary([b"", *[bytes([b]) for b in range(256)], *WORDS], eos_ids=[0])
MOST_BYTES = 300 << 20

# Three that take seconds: the benchmark runs them all.
SLOW = {"anyOf of 500 objects, same keys", "100 conditions", "oneOf of 100, overlapping"}
# More states in one step, or in all, than the limits allow: refused at that step.
OVER_LIMITS = {"dfa_states", "dfa_states_per_step", "members_per_step", "nfa_states"}


def walked(spec: Spec) -> str:
    """Compile and read 12 tokens under masks and budgets; the limit that refused it, or "served"."""
    limits = Limits()
    try:
        constraint = compile(spec, VOCABULARY, limits)
        matcher, rng = constraint.matcher(), random.Random(1)
        for i in range(12):
            cost = matcher.cost_to_accept()
            assert cost > 0
            allowed = matcher.allowed(budget=cost + i if i % 2 else None).tolist()
            assert allowed
            assert constraint.automaton.machine.num_states <= limits.dfa_states
            assert constraint.automaton.nbytes < MOST_BYTES / 3
            matcher.advance(rng.choice([t for t in allowed if t != 0] or allowed))
            if matcher.is_terminated:
                break
    except UnsupportedConstraint as error:
        return error.keyword
    return "served"


@pytest.mark.parametrize(
    ("name", "spec"), [b for b in SERVED if b[0] not in SLOW], ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_bomb_is_served_within_the_limits(name: str, spec: Spec) -> None:
    assert walked(spec) == "served"


@pytest.mark.parametrize(("name", "limit", "spec"), REFUSED, ids=[n for n, *_ in REFUSED])
def test_a_bomb_is_refused_and_names_the_limit(name: str, limit: str, spec: Spec) -> None:
    with pytest.raises(UnsupportedConstraint) as caught:
        compile(spec, VOCABULARY)
    assert caught.value.keyword == limit


@pytest.mark.parametrize(
    ("name", "spec"), [b for b in OPEN if b[0] not in SLOW], ids=[n for n, _ in OPEN if n not in SLOW]
)
def test_a_bomb_at_the_edge_is_served_or_refused_by_a_limit_on_states(name: str, spec: Spec) -> None:
    assert walked(spec) in OVER_LIMITS | {"served", "anyOf", "~any"}


@pytest.mark.parametrize("name", ["(a|b)*a(a|b){20}", "3,000 optional properties", "minLength 10,000", "[^x]{0,9999}x"])
def test_a_bomb_takes_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        walked(dict(SERVED)[name])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MOST_BYTES / 3  # on a vocabulary that is far smaller than a model's


def test_a_step_that_needs_too_many_states_ends_its_request_and_not_the_constraint() -> None:
    limits = Limits(dfa_states_per_step=3)
    constraint = compile(Regex("(a|b)*a(a|b){6}|x"), VOCABULARY, limits)
    with pytest.raises(UnsupportedConstraint, match="dfa_states_per_step"):
        constraint.matcher().mask()
    other = constraint.matcher()
    assert other.advance_bytes(b"x")
    assert other.is_accepting


def test_a_thousand_levels_of_recursion_cost_states_in_proportion() -> None:
    constraint = compile(Grammar('root ::= "[" root "]" | "a"'), VOCABULARY)
    matcher = constraint.matcher()
    for _ in range(1000):
        assert matcher.advance_bytes(b"[")
    assert matcher.advance_bytes(b"a" + b"]" * 1000)
    assert matcher.is_accepting
    assert 1000 < constraint.automaton.machine.num_states < 6000


def test_a_schema_too_deep_for_python_is_refused_before_it_is_written() -> None:
    with pytest.raises(UnsupportedConstraint):
        JsonSchema.of(nested_arrays(20_000))


def test_compilation_stops_at_its_deadline() -> None:
    ticks = iter(range(0, 10**9, 3))
    with pytest.raises(UnsupportedConstraint, match="compile_seconds"):
        compile(JsonSchema.of(optional_properties(3000)), VOCABULARY, clock=lambda: float(next(ticks)))
