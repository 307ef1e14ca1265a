"""Constraints made to explode: each is refused, or served within the limits on states."""

from __future__ import annotations

import random
from typing import Any

import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import compile
from palmette.fsm.limits import Limits
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec

WORDS = [
    b"a",
    b"b",
    b"ab",
    b"aaaa",
    b"bbbb",
    b"abab",
    b'", "',
    b'": ',
    b"null",
    b"true",
    b"property",
    b"value ",
    b"[[[[",
]
VOCABULARY = Vocabulary([b"", *[bytes([b]) for b in range(256)], *[w for w in WORDS if len(w) > 1]], eos_ids=[0])


def nested(levels: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def optional_properties(count: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"property{i}": {"type": "integer"} for i in range(count)},
        "additionalProperties": False,
    }


SERVED: list[tuple[str, Spec]] = [
    ("(a|b)*a(a|b){20}", Regex("(a|b)*a(a|b){20}")),
    (".{0,5000}", Regex(".{0,5000}")),
    ("(.{0,100}){0,100}", Regex("(.{0,100}){0,100}")),
    ("((a*)*)*", Regex("((((((((((a*)*)*)*)*)*)*)*)*)*)*")),
    ("(a?){5000}a{5000}", Regex("(a?){5000}a{5000}")),
    ("(a|aa)+(b|bb)+x", Regex("((a|aa)+(b|bb)+)*x")),
    ("3,000 optional properties", JsonSchema.of(optional_properties(3000))),
    ("maxLength 1e6", JsonSchema.of({"type": "string", "maxLength": 1_000_000})),
    ("maxItems 1e6", JsonSchema.of({"type": "array", "items": {"type": "null"}, "maxItems": 1_000_000})),
    ("10,000 choices", Choices(tuple(f"choice {i * 7919}" for i in range(10_000)))),
    ("100 optional, at least 50", JsonSchema.of({**optional_properties(100), "minProperties": 50})),
]
REFUSED: list[tuple[str, str, Any]] = [
    ("((a{0,100}){0,100}){0,100}", "repeat_product", Regex("((a{0,100}){0,100}){0,100}")),
    ("3,000 nested groups", "regex_nesting", Regex("(" * 3000 + "a" + ")" * 3000)),
    ("3,000-deep arrays", "schema_depth", JsonSchema('{"items":' * 3000 + "true" + "}" * 3000)),
    ("100-deep arrays", "schema_depth", JsonSchema.of(nested(100))),
    ("enum of 20,000", "enum_values", JsonSchema.of({"enum": list(range(20_000))})),
    ("20,000 choices", "enum_values", Choices(tuple(map(str, range(20_000))))),
    ("6,000 properties", "properties", JsonSchema.of(optional_properties(6000))),
    ("minLength 1e6", "repeat", JsonSchema.of({"type": "string", "minLength": 1_000_000})),
    ('{"$ref": "#"}', "$ref", JsonSchema.of({"$ref": "#"})),
    ("a{1000000}", "repeat", Regex("a{1000000}")),
    ("300 KiB", "spec_bytes", Regex("a" * 300_000)),
    ("left recursion", "rule", Grammar('root ::= root "a" | "b"')),
    ("5,000 nested brackets", "regex_nesting", Grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spec"), SERVED, ids=[n for n, _ in SERVED])
def test_a_bomb_is_served_within_the_limits(name: str, spec: Spec) -> None:
    limits = Limits()
    constraint = compile(spec, VOCABULARY, limits)
    budget = constraint.automaton.budget
    matcher, rng = constraint.matcher(), random.Random(1)
    for _ in range(12):
        allowed = matcher.allowed().tolist()
        assert allowed
        assert budget.states <= limits.dfa_states
        token = rng.choice([t for t in allowed if t != 0] or allowed)
        matcher.advance(token)
        if matcher.is_terminated:
            break
    assert matcher.cost_to_accept() >= 0


@pytest.mark.parametrize(("name", "limit", "spec"), REFUSED, ids=[n for n, *_ in REFUSED])
def test_a_bomb_is_refused_and_names_the_limit(name: str, limit: str, spec: Spec) -> None:
    with pytest.raises(UnsupportedConstraint) as caught:
        compile(spec, VOCABULARY)
    assert caught.value.keyword == limit


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
    assert constraint.automaton.budget.states < 6000


def test_a_schema_too_deep_for_python_is_refused_before_it_is_written() -> None:
    with pytest.raises(UnsupportedConstraint):
        JsonSchema.of(nested(20_000))


def test_compilation_stops_at_its_deadline() -> None:
    ticks = iter(range(0, 10**9, 3))
    with pytest.raises(UnsupportedConstraint, match="compile_seconds"):
        compile(JsonSchema.of(optional_properties(3000)), VOCABULARY, clock=lambda: float(next(ticks)))
