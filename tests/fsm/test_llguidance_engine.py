"""The optional engine: the same interface, the same masks on the shared dialect, and grammars that ours refuses."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence

import numpy as np
import pytest

from palmette.errors import RequestError, UnsupportedConstraint, UnsupportedFeature
from palmette.fsm.compile import compile
from palmette.fsm.cursor import CompiledConstraint, Cursor
from palmette.fsm.llguidance_engine import LLGuidanceConstraint, LLGuidanceEngine, LLGuidanceMatcher
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, Grammar, JsonSchema, Regex, SchemaOptions, Spec
from tests.fsm.test_matcher_oracle import EOS, wide_vocabulary

pytest.importorskip("llguidance", reason="llguidance is not installed")

WIDE = wide_vocabulary()
BYTES = Vocabulary([b"", *(bytes([b]) for b in range(256)), b"ab", b'": ', b"null", b"Yes"], eos_ids=[EOS])
SCHEMA = {  # no free strings: llguidance leaves U+007F out of them
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-d]{1,8}$"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def longest_first(data: bytes) -> Sequence[int] | None:
    return BYTES.greedy(data)


@pytest.fixture(scope="module")
def wide() -> LLGuidanceEngine:
    return LLGuidanceEngine(WIDE, WIDE.greedy)


@pytest.fixture(scope="module")
def engine() -> LLGuidanceEngine:
    return LLGuidanceEngine(BYTES, longest_first)


def read(matcher: Cursor, text: str) -> bool:
    return all(matcher.try_advance(t) for t in BYTES.greedy(text.encode()))


def accepts(constraint: CompiledConstraint, text: str) -> bool:
    matcher = constraint.matcher()
    return read(matcher, text) and matcher.is_accepting


def test_both_engines_offer_what_a_cursor_must(engine: LLGuidanceEngine) -> None:
    spec = Regex("ab?")
    constraints: list[CompiledConstraint] = [compile(spec, BYTES), engine.compile(spec)]
    for constraint in constraints:
        cursor: Cursor = constraint.matcher()
        assert not cursor.is_accepting
        assert constraint.unenforced == ()
    assert constraints[0].key != constraints[1].key
    assert engine.compile(spec) == engine.compile(spec)
    assert hash(engine.compile(spec)) == hash(engine.compile(spec))
    assert engine.compile(spec) != engine.compile(Regex("ab"))


@pytest.mark.parametrize(
    "spec",
    [
        Regex("[0-9]{4}-[0-9]{2}"), Regex("(abc|ab|a)*x?"), Regex("[^a-c]*z"), Regex("[aé日]{1,5}"), Regex(".{0,9}"),
        Regex(r"\d+\.\d*|\w{2,4}/a"), Choices(("yes", "no", "né", 'a"b\\', "yes and no")), JsonSchema.of(SCHEMA),
        JsonSchema.of(SCHEMA, SchemaOptions(compact=True)), Grammar('root ::= s\ns ::= "a" s "b" | [0-9]+'),
    ],
    ids=str,
)  # fmt: skip
def test_masks_are_ours_on_the_shared_dialect(wide: LLGuidanceEngine, spec: Spec) -> None:
    rng = random.Random(31)
    constraint, peer = compile(spec, WIDE), wide.compile(spec)
    compared = 0
    for _ in range(5):
        ours, theirs = constraint.matcher(), peer.matcher()
        for _ in range(12):
            allowed = ours.allowed().tolist()
            forced = theirs.forced_tokens(WIDE.greedy)
            if ours.forced_bytes() and forced:  # llguidance's mask is then its own forced token
                assert forced[0] in allowed
                allowed = forced[:1]
            assert theirs.allowed().tolist() == allowed
            assert theirs.is_accepting == ours.is_accepting
            compared += 1
            if ours.is_terminated:
                break
            token = rng.choice(allowed)
            ours.advance(token)
            theirs.advance(token)
    assert compared > 8


def test_grammars_that_ours_refuses_are_served(engine: LLGuidanceEngine) -> None:
    served: list[tuple[str, list[str], list[str]]] = [
        ('start: s\ns: s "+" n | n\nn: /[0-9]+/', ["1", "1+22+3"], ["+1", "1+"]),  # left recursion
        ('start: "x" j\nj: %json {"type": "integer"}', ["x12"], ['x"a"', "12"]),
        ('start: r\nr: %regex {"substring_words": "one two three"}', ["two three", "one"], ["three two"]),
        ('start: "a" "b"\n%ignore / /', ["ab", "a  b"], ["a", "ba"]),
    ]
    for grammar, good, bad in served:
        with pytest.raises(UnsupportedConstraint):
            compile(Grammar(grammar), BYTES)
        constraint = engine.compile(Grammar(grammar))
        assert [t for t in good if not accepts(constraint, t)] == []
        assert [t for t in bad if accepts(constraint, t)] == []


def test_what_it_refuses_is_refused_with_its_own_words(engine: LLGuidanceEngine) -> None:
    refused: list[tuple[Spec, str]] = [
        (Regex("(a"), "unclosed group"),
        (Regex("(?=a)b"), "look-around"),
        (Grammar("start: a"), "unknown name"),
        (Grammar("root ::= ("), "GBNF"),
        (JsonSchema.of({"type": "object", "unevaluatedProperties": False}), "unevaluatedProperties"),
        (Choices(()), "nothing to choose"),
    ]
    for spec, word in refused:
        with pytest.raises(UnsupportedConstraint, match=word):
            engine.compile(spec)


def test_what_strict_false_leaves_out_is_listed(engine: LLGuidanceEngine) -> None:
    constraint = engine.compile(JsonSchema.of({"type": "array", "uniqueItems": True}, SchemaOptions(strict=False)))
    assert len(constraint.unenforced) == 1
    assert "uniqueItems" in constraint.unenforced[0]


def test_further_whitespace_is_bounded(engine: LLGuidanceEngine) -> None:
    options = SchemaOptions(compact=True, whitespace=2)
    constraint = engine.compile(JsonSchema.of({"type": "array", "items": {"type": "integer"}}, options))
    assert accepts(constraint, "[1,2]")
    assert accepts(constraint, "[1,  2]")
    assert not accepts(constraint, "[1,   2]")


def test_a_refused_token_leaves_the_matcher_where_it_was(engine: LLGuidanceEngine) -> None:
    matcher = engine.compile(Regex("abc")).matcher()
    matcher.advance(BYTES.tokens.index(b"ab"))
    for token in (BYTES.tokens.index(b"a"), EOS, len(BYTES), -1):
        assert not matcher.try_advance(token)
    with pytest.raises(RequestError, match="not allowed"):
        matcher.advance(BYTES.tokens.index(b"a"))
    assert matcher.allowed().tolist() == [BYTES.tokens.index(b"c")]


def test_rollback_and_fork_return_to_the_very_mask(engine: LLGuidanceEngine) -> None:
    rng = random.Random(37)
    constraint = engine.compile(JsonSchema.of(SCHEMA))
    for _ in range(20):
        matcher = constraint.matcher()
        seen = [matcher.mask().copy()]
        while not matcher.is_terminated and len(seen) < 40:
            matcher.advance(rng.choice(matcher.allowed().tolist()))
            seen.append(matcher.mask().copy())
        twin = matcher.fork()
        back = rng.randint(0, len(seen) - 1)
        matcher.rollback(back)
        assert np.array_equal(matcher.mask(), seen[len(seen) - 1 - back])
        assert len(matcher.tokens) == len(seen) - 1 - back
        assert np.array_equal(twin.mask(), seen[-1])
    with pytest.raises(RequestError, match="roll back"):
        constraint.matcher().rollback(1)


def test_bytes_are_one_reading(engine: LLGuidanceEngine) -> None:
    matcher = engine.compile(Regex("abcabd")).matcher()
    assert matcher.advance_bytes(b"abca")
    assert not matcher.advance_bytes(b"x")
    assert matcher.tokens == ()
    assert matcher.allowed().tolist() == [BYTES.tokens.index(b"b")]
    matcher.rollback(1)
    assert read(matcher, "abcabd")


def test_end_of_sequence_is_allowed_where_the_text_may_end_and_ends_it() -> None:
    vocabulary = Vocabulary([b"", b"a", b"b", b""], eos_ids=[0, 3])
    matcher = LLGuidanceEngine(vocabulary, lambda data: None).compile(Regex("ab?")).matcher()
    assert matcher.allowed().tolist() == [1]
    matcher.advance(1)
    assert matcher.allowed().tolist() == [0, 2, 3]
    matcher.advance(3)
    assert matcher.is_terminated
    assert matcher.allowed().tolist() == []
    assert not matcher.try_advance(2)
    matcher.rollback(1)
    matcher.advance(2)
    assert matcher.allowed().tolist() == [0, 3]
    matcher.rollback(2)
    assert matcher.allowed().tolist() == [1]


def test_forced_tokens_bind(engine: LLGuidanceEngine) -> None:
    spec = Choices(("Yes, ab", "Yes, ac"))
    matcher = engine.compile(spec).matcher()
    assert matcher.forced_bytes() == b"Yes, a"
    plan = matcher.plan_forced(longest_first)
    assert plan
    assert b"Yes, a".startswith(b"".join(BYTES.tokens[t] for t in plan))
    for i, token in enumerate(plan):
        assert matcher.forced_plan == tuple(plan[i:])
        assert matcher.allowed().tolist() == [token]
        matcher.advance(token)
    assert engine.compile(spec).matcher().forced_tokens(lambda data: None) == []


def test_a_budget_is_not_enforced_but_its_last_token_ends_what_may_end(engine: LLGuidanceEngine) -> None:
    matcher: LLGuidanceMatcher = engine.compile(Regex("a{2,9}")).matcher()
    assert matcher.cost_to_accept() >= 2
    assert matcher.allowed(budget=1).tolist() == matcher.allowed().tolist(), "too late, and nobody knows"
    read(matcher, "aa")
    assert matcher.cost_to_accept() == 1
    assert matcher.allowed(budget=2).tolist() == matcher.allowed().tolist()
    assert matcher.allowed(budget=1).tolist() == [EOS]
    with pytest.raises(RequestError, match="max_new_tokens"):
        matcher.allowed(budget=0)
    matcher.advance(EOS)
    assert matcher.cost_to_accept() == 0


def test_when_llguidance_gives_up_the_request_gets_the_error(engine: LLGuidanceEngine) -> None:
    constraint: LLGuidanceConstraint = engine.compile(Regex("ab"))
    matcher = LLGuidanceMatcher(constraint, constraint.start.deep_copy())
    matcher._matcher.consume_token(EOS)  # what this class never does: the LLMatcher is broken from here on
    with pytest.raises(RequestError, match="llguidance gave up"):
        matcher.mask()


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UnsupportedFeature, match=r"pip install 'palmette\[llguidance\]'"):
        LLGuidanceEngine(BYTES, longest_first)


def test_a_vocabulary_without_end_of_sequence_is_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="end-of-sequence"):
        LLGuidanceEngine(Vocabulary([b"a"], eos_ids=[]), longest_first)
